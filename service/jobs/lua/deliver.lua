#!lua
-- Endpoints of subscribers, and what is on its way to them. Members are '<job> <entry of the stream> <type>', see `deliver` of
-- the prelude. lanes:{endpoint} has all that waits, by name; deliveries:{endpoint} has the first of each job's by due time,
-- tries:{endpoint} how often it was tried. state:{endpoint}: busy (a task is queued or runs) · run, until (the run that has the
-- endpoint, for so long) · failures in a row, since (ms, the first of them) · retry_at (left alone until then), pauses, paused
-- (how many in a row, ms of the last). ARGV: what, endpoint, then for
-- 'claim' run, lease ms, limit, 1 where the run goes on anyway → {lease, endpoint, secrets, {member, tries before, event or nil, its trace or nil}…};
--   nil where another run has the endpoint, or where nothing is due: then the run is over in the same step, and whatever comes
--   next sets off another
-- 'release' run · 'drop' member, lease · 'sent' member, lease, attempt · 'failed' member, lease, attempt, ms to the next try
--   ('' for none), ms to be left alone, age of the call in ms → ms since when nothing has got through. Of a member whose lease
--   is another's by now, only the attempt is noted
-- 'add' member… · 'put' row, row before (''), route ('' while disabled), event to publish ('') → 0 where the row has changed
--   meanwhile · 'delete'

local what, endpoint = ARGV[1], ARGV[2]
local due, lanes, tries = key('deliveries', endpoint), key('lanes', endpoint), key('tries', endpoint)
local endpoints, routes, state, task = key('endpoints'), key('routes'), key('state', endpoint), 'notify-' .. endpoint

local function clear()
  redis.call('DEL', due, lanes, tries, state)
  redis.call('ZREM', key('tasks'), task)
end

local function held(member, lease)
  return tonumber(redis.call('ZSCORE', due, member) or 0) == tonumber(lease)
end

local function finish(member) -- the next event of its job is due
  redis.call('ZREM', due, member)
  redis.call('ZREM', lanes, member)
  redis.call('HDEL', tries, member)
  local next = unpack(lane(endpoint, member))
  if next then redis.call('ZADD', due, NOW, next) end
end

if what == 'claim' then
  local run, lease = ARGV[3], NOW + ARGV[4]
  local row = redis.call('HGET', endpoints, endpoint)
  if not row or redis.call('HEXISTS', routes, endpoint) == 0 then return clear() end -- deleted, or disabled
  local other, till, retry_at = unpack(redis.call('HMGET', state, 'run', 'until', 'retry_at'))
  if other and other ~= run and tonumber(till) > NOW then return end
  retry_at = tonumber(retry_at)
  local limit = not retry_at and tonumber(ARGV[5]) or NOW < retry_at and 0 or 1 -- one event tries whether it is well again
  local members = redis.call('ZRANGE', due, '-inf', NOW, 'BYSCORE', 'LIMIT', 0, limit)
  if #members == 0 and ARGV[6] == '0' then
    local next = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')[2]
    redis.call('HDEL', state, 'busy', 'run', 'until')
    if next then
      redis.call('ZADD', key('tasks'), math.max(next, retry_at or 0), task)
    else
      redis.call('ZREM', key('tasks'), task)
    end
    return
  end
  local claimed = {lease, row, redis.call('HGETALL', key('secrets', endpoint))}
  for i, member in ipairs(members) do
    redis.call('ZADD', due, lease, member)
    local ms, number = member:match(' (%d+)%-(%d+) ')
    local id = string.format('%s-%d', ms, number)
    local entry = redis.call('XRANGE', key('stream'), id, id)[1]
    claimed[i + 3] = {member, tonumber(redis.call('HGET', tries, member) or 0), entry and entry[2][2] or false, entry and entry[2][4] or false}
  end
  if retry_at and #members > 0 then redis.call('HSET', state, 'retry_at', lease) end
  redis.call('HSET', state, 'busy', 1, 'run', run, 'until', lease)
  redis.call('ZADD', key('tasks'), lease, task)
  return claimed
elseif what == 'release' then
  if redis.call('HGET', state, 'run') == ARGV[3] then redis.call('HDEL', state, 'run', 'until') end
elseif what == 'drop' then
  if held(ARGV[3], ARGV[4]) then finish(ARGV[3]) end
  if redis.call('HGET', state, 'retry_at') == ARGV[4] then redis.call('HSET', state, 'retry_at', NOW) end -- it was no trial
elseif what == 'sent' or what == 'failed' then
  local member, lease, attempt = ARGV[3], ARGV[4], ARGV[5]
  if redis.call('HEXISTS', endpoints, endpoint) == 0 then return 0 end
  redis.call('XADD', key('attempts', endpoint), 'MAXLEN', '~', ATTEMPTS_KEPT, '*', 'attempt', attempt)
  redis.call('XTRIM', key('attempts', endpoint), 'MINID', NOW - ATTEMPTS_SECONDS * 1000)
  redis.call('EXPIRE', key('attempts', endpoint), ATTEMPTS_SECONDS)
  local of_job = key('attempts_of', (member:match('^%S+')))
  redis.call('LPUSH', of_job, attempt)
  redis.call('LTRIM', of_job, 0, ATTEMPTS_OF_JOB - 1)
  redis.call('EXPIRE', of_job, ATTEMPTS_SECONDS)
  local mine = held(member, lease)
  if what == 'sent' then
    redis.call('HDEL', state, 'failures', 'since', 'retry_at', 'pauses', 'paused')
    if mine then finish(member) end
    return 0
  end
  local again, wait, age = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
  if mine and again then
    redis.call('ZADD', due, NOW + again, member)
    redis.call('HINCRBY', tries, member, 1)
  elseif mine then
    finish(member)
  end
  redis.call('HSETNX', state, 'since', NOW)
  local failures, paused = redis.call('HINCRBY', state, 'failures', 1), redis.call('HGET', state, 'paused')
  if (wait > 0 or failures >= PAUSE_AFTER) and not (paused and NOW - age < tonumber(paused)) then -- what failed together is one failure
    local pauses = redis.call('HINCRBY', state, 'pauses', 1)
    wait = math.max(wait, math.min(300000, 1000 * 2 ^ math.min(pauses - 1, 10)))
    redis.call('HSET', state, 'paused', NOW, 'retry_at', NOW + wait)
  end
  return NOW - redis.call('HGET', state, 'since')
elseif what == 'add' then -- somebody asks for it: an endpoint that is left alone is tried all the same
  redis.call('HDEL', state, 'retry_at')
  for i = 3, #ARGV do deliver(endpoint, ARGV[i]) end
elseif what == 'put' then
  local row, before, route, event = unpack(ARGV, 3)
  if (redis.call('HGET', endpoints, endpoint) or '') ~= before then return 0 end
  redis.call('HSET', endpoints, endpoint, row)
  if route == '' then
    redis.call('HDEL', routes, endpoint)
    clear()
  else
    redis.call('HSET', routes, endpoint, route)
    redis.call('HDEL', state, 'failures', 'since', 'retry_at', 'pauses', 'paused') -- a fresh chance
    if redis.call('ZCARD', due) > 0 then redis.call('ZADD', key('tasks'), NOW, task) end
  end
  if event ~= '' then
    redis.call('XADD', key('stream'), 'MAXLEN', '~', STREAM_LENGTH, '*', 'event', event)
    redis.call('PUBLISH', key('events'), event)
  end
  return 1
elseif what == 'delete' then
  redis.call('HDEL', endpoints, endpoint)
  redis.call('HDEL', routes, endpoint)
  redis.call('DEL', key('secrets', endpoint), key('attempts', endpoint))
  clear()
end
