#!lua
-- How a vendor is doing, and how often it may be called, over all processes.
-- ARGV: 'well', vendor · 'unwell', vendor, wait ms (0: doubles with every failure in a row, from 1 s to 5 min) → ms until the next try ·
-- 'take', vendor, kind, requests, window ms → ms to wait before the call may be made (0: made now). A log of the last calls, so
-- that no window of that length, wherever it begins, holds more than `requests`.

local what, vendor = ARGV[1], ARGV[2]
local health = key('vendor', vendor)

if what == 'well' then
  return redis.call('DEL', health)
end
if what == 'unwell' then
  local failures = redis.call('HINCRBY', health, 'failures', 1)
  local wait = math.max(tonumber(ARGV[3]), math.min(300000, 1000 * 2 ^ math.min(failures - 1, 10)))
  redis.call('HSET', health, 'retry_at', NOW + wait)
  return wait
end
local calls, requests, window = key('calls', vendor, ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local oldest = redis.call('LINDEX', calls, requests - 1)
if oldest and NOW - tonumber(oldest) <= window then
  return window - (NOW - tonumber(oldest)) + 1
end
redis.call('LPUSH', calls, NOW)
redis.call('LTRIM', calls, 0, requests - 1)
redis.call('PEXPIRE', calls, window)
return 0
