#!lua
-- How a vendor is doing, and how often it may be called, over all processes; `kind` is the kind of call: read, submit, upload.
-- ARGV: 'well', vendor, kind · 'unwell', vendor, kind, wait ms (0: doubles with every failure in a row, from 1 s to 5 min), age of the
-- call in ms (what was under way when another failed is the same failure) → ms until the next try · 'take', vendor, kind, requests,
-- window ms, number → how many of so many calls may be made now, and ms to wait before the next one. A log of the last calls, so that no
-- window of that length, wherever it begins, holds more than `requests`.
-- 'turn', vendor, 'submit', requests (0: no limit), window ms, job id → the same for a job that is to be submitted, in the order of the line.

local what, vendor, kind = ARGV[1], ARGV[2], ARGV[3]
local health = kind == 'read' and key('vendor', vendor) or key('vendor', vendor, kind)

if what == 'well' then
  return redis.call('DEL', health)
end
if what == 'unwell' then
  local failed_at, known = unpack(redis.call('HMGET', health, 'failed_at', 'retry_at'))
  if failed_at and NOW - ARGV[5] < tonumber(failed_at) then return math.max(1, known - NOW) end
  local failures = redis.call('HINCRBY', health, 'failures', 1)
  local wait = math.max(tonumber(ARGV[4]), math.min(300000, 1000 * 2 ^ math.min(failures - 1, 10)))
  redis.call('HSET', health, 'retry_at', NOW + wait, 'failed_at', NOW)
  return wait
end

local calls, requests, window = key('calls', vendor, kind), tonumber(ARGV[4]), tonumber(ARGV[5])

local function log_call()
  redis.call('LPUSH', calls, NOW)
  redis.call('LTRIM', calls, 0, requests - 1)
  redis.call('PEXPIRE', calls, window)
end

if what == 'take' then
  for taken = 0, ARGV[6] - 1 do
    local oldest = redis.call('LINDEX', calls, requests - 1)
    if oldest and NOW - tonumber(oldest) <= window then
      return {taken, window - (NOW - tonumber(oldest)) + 1}
    end
    log_call()
  end
  return {tonumber(ARGV[6]), 0}
end

local id, turns = ARGV[6], key('turns', vendor)
local retry_at = tonumber(redis.call('HGET', health, 'retry_at'))
local recent = {} -- calls within the window, newest first
for _, at in ipairs(requests > 0 and redis.call('LRANGE', calls, 0, -1) or {}) do
  if NOW - at <= window then recent[#recent + 1] = tonumber(at) end
end
local room = requests > 0 and requests - #recent or math.huge
local free = room
if retry_at then free = NOW >= retry_at and math.min(room, 1) or 0 end -- it was unwell: one job tries
if free < math.huge then
  local at = redis.call('ZSCORE', turns, id)
  if not at and redis.call('HEXISTS', key('job', id), '_sent') == 1 then -- it had its turn, and was refused: before all others
    at = retry_at or NOW
    redis.call('ZADD', turns, at, id)
  end
  at = tonumber(at or reserve(vendor, id, math.max(requests, 1), window))
  local rank = redis.call('ZRANK', turns, id)
  if rank >= free then
    local leaves = rank >= room and recent[#recent - (rank - room)] -- the call that has to leave the window for this one
    return math.max(at - NOW, retry_at and retry_at - NOW or 0, leaves and leaves + window - NOW or 0, 200)
  end
end
redis.call('ZREM', turns, id)
if requests > 0 then log_call() end
if retry_at then redis.call('HSET', health, 'retry_at', NOW + TRIAL) end -- the others wait to hear how it went
return 0
