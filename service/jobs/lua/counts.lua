#!lua
-- Adds what a process has counted to the sums: those of all time, and those of this hour, which are kept for eight days. Once: a
-- sending that is said again, because its answer was lost, adds nothing.
-- ARGV: the process as '<part>:<id>', the number of the sending, then sample, amount…

local process, sending = ARGV[1], tonumber(ARGV[2])
redis.call('ZADD', key('processes'), NOW, process)
redis.call('ZREMRANGEBYSCORE', key('processes'), '-inf', NOW - 60000)
if #ARGV == 2 then return 0 end
local counted = key('counted', process)
if tonumber(redis.call('GET', counted) or 0) >= sending then return 0 end
redis.call('SET', counted, sending, 'EX', 86400)
local hour = key('metrics', iso(NOW):sub(1, 13))
for i = 3, #ARGV, 2 do
  redis.call('HINCRBYFLOAT', key('metrics'), ARGV[i], ARGV[i + 1])
  redis.call('HINCRBYFLOAT', hour, ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', hour, 8 * 86400)
return 1
