#!lua
-- Renews or drops what only its holder may: ARGV 'renew', key, holder, ms · 'drop', key, holder → 1 where it was the holder's.
if redis.call('GET', ARGV[2]) ~= ARGV[3] then return 0 end
if ARGV[1] == 'renew' then
  redis.call('PEXPIRE', ARGV[2], ARGV[4])
else
  redis.call('DEL', ARGV[2])
end
return 1
