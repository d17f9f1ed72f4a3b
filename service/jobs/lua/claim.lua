#!lua
-- Takes what is due, for a while: whoever claims holds it until the lease is over, and who dies merely delays it.
-- ARGV: 'polls', vendor, lease ms, limit, early ms (where anything is due, so is what will be within that time) → {{job id, vendor's
-- job id as JSON, 1 where it is a try}…}; none while the vendor is being left alone, one when it is tried again. 'deadlines', lease ms,
-- limit → {job id…}.

local function take(set, lease, limit, early)
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')[2]
  if not first or tonumber(first) > NOW then return {} end
  local ids = redis.call('ZRANGE', set, '-inf', NOW + (early or 0), 'BYSCORE', 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do redis.call('ZADD', set, NOW + lease, id) end
  return ids
end

if ARGV[1] == 'deadlines' then
  return take(key('deadlines'), ARGV[2], ARGV[3])
end

local vendor, limit, early = ARGV[2], ARGV[4], ARGV[5]
local retry_at = redis.call('HGET', key('vendor', vendor), 'retry_at')
if retry_at and NOW < tonumber(retry_at) then return {} end
local claimed, ids = {}, take(key('polls', vendor), ARGV[3], retry_at and 1 or limit, early)
if retry_at and #ids > 0 then -- one process tries, with one job
  redis.call('HSET', key('vendor', vendor), 'retry_at', NOW + ARGV[3])
end
for i, id in ipairs(ids) do
  local known, step = unpack(redis.call('HMGET', key('job', id), 'vendor_job_id', '_step_id'))
  claimed[i] = {id, known or step, retry_at and 1 or 0}
end
return claimed
