#!lua
-- Forgets jobs that have ended, and letters of the quarantine. What was stored of them stays where it is, and so do the sums of their costs.
-- ARGV: id before which, ms before which (letters, parked facts), limit → how many were forgotten. 'letter', id: that one.

if ARGV[1] == 'letter' then
  drop('quarantine', ARGV[2])
  return 1
end

local left = tonumber(ARGV[3])
local ended = {succeeded = true, failed = true, cancelled = true, expired = true}

local function forget(vendor, index, id)
  for _, known in ipairs(redis.call('HMGET', key('job', id), 'vendor_job_id', '_step_id')) do
    if known then redis.call('HDEL', key('vendor_jobs', vendor), cjson.decode('[' .. known .. ']')[1]) end
  end
  redis.call('DEL', key('job', id), key('timeline', id), key('raw', id))
  redis.call('ZREM', index, id)
  redis.call('ZREM', key('polls', vendor), id)
end

for _, index in ipairs(redis.call('SMEMBERS', key('indexes'))) do
  local vendor, status, archive = index:match('([^:]+):([^:]+):([^:]+)$')
  if left > 0 and ended[status] and archive ~= 'waiting' then
    for _, id in ipairs(redis.call('ZRANGE', index, '-', '(' .. ARGV[1], 'BYLEX', 'LIMIT', 0, left)) do
      forget(vendor, index, id)
      left = left - 1
    end
  end
end
for kind, before in pairs({quarantine = ARGV[2], parked = NOW - PARKED_SECONDS * 1000}) do
  for _, name in ipairs(redis.call('ZRANGE', key(kind), '-inf', '(' .. string.format('%.0f', before), 'BYSCORE', 'LIMIT', 0, left)) do
    drop(kind, name)
    left = left - 1
  end
end
return tonumber(ARGV[3]) - left
