-- Shared by every script. Above this file stands a header made by scripts.py: PREFIX, FIELDS, DEFAULTS, STATUSES,
-- WITNESSES, RULES, STATUS_EVENTS, ARCHIVE_EVENTS, TASKS and the limits.
--
-- A job is one hash. Each public field holds its own JSON, so that the job's JSON is a matter of joining strings and
-- nothing is ever decoded and encoded again. Fields that begin with '_' are ours alone and never leave the store:
--   _since    ms, when the vendor got the job (or when the row was made): its age sets the rhythm of polling
--   _expires  ms, the deadline          _events   the types announced so far      _attempts  tries to store the outputs
--   _raws     how many raw payloads were kept, each in raw:{id} for as long as the setting says
--   _unlisted facts that the full timeline no longer lists      _trouble  what polling stumbled over last
-- and of a job that we submit:
--   _order    JSON, what is asked of the vendor                 _prepared JSON, what was found and uploaded for it
--   _sent     the sending that is or was under way, _sent_at ms when it began
--   _step     JSON, the model of the vendor's job that has to be done before, _step_id JSON, the vendor's id of it,
--             _step_at its status so far

local time = redis.call('TIME')
local NOW = time[1] * 1000 + math.floor(time[2] / 1000) -- Redis' clock is the only one that decides

local function key(...)
  return PREFIX .. ':' .. table.concat({...}, ':')
end

-- ms since the epoch as ISO-8601 UTC. Redis' Lua has no os.date; the calendar is Howard Hinnant's civil_from_days.
local function iso(ms, digits)
  local days, rest = math.floor(ms / 86400000), ms % 86400000
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03d%sZ', year, month, day, math.floor(rest / 3600000),
    math.floor(rest / 60000) % 60, math.floor(rest / 1000) % 60, rest % 1000, digits or '')
end

local function quote(word) -- only for words of ours: no escaping
  return '"' .. word .. '"'
end

local function unquote(fragment)
  return fragment and string.sub(fragment, 2, -2)
end

local function load_job(id)
  local flat = redis.call('HGETALL', key('job', id))
  if #flat == 0 then return nil end
  local job = {}
  for i = 1, #flat, 2 do job[flat[i]] = flat[i + 1] end
  return job
end

local function job_json(job)
  local parts = {}
  for i, name in ipairs(FIELDS) do
    parts[i] = '"' .. name .. '":' .. (job[name] or DEFAULTS[name] or 'null')
  end
  return '{' .. table.concat(parts, ',') .. '}'
end

-- What strangers can send without end, letters (`quarantine`) and facts about jobs that nobody has registered (`parked`), is kept
-- up to KEPT_BYTES of each kind: zset {kind} by time, {kind}:{name} what is kept, hash kept:{kind} name → bytes, '' → all of them.
local function drop(kind, name)
  local sizes = key('kept', kind)
  local bytes = redis.call('HGET', sizes, name) or 0
  redis.call('ZREM', key(kind), name)
  redis.call('DEL', key(kind, name))
  redis.call('HDEL', sizes, name)
  return redis.call('HINCRBY', sizes, '', -bytes)
end

-- The oldest goes first, so that what comes now can be read, however much came before. Its jobs are asked about all the same.
local function keep(kind, name, more)
  local sizes = key('kept', kind)
  if redis.call('ZADD', key(kind), NOW, name) == 1 then more = more + 1024 end -- what the least of them takes
  redis.call('HINCRBY', sizes, name, more)
  local all = redis.call('HINCRBY', sizes, '', more)
  while all > KEPT_BYTES do
    local oldest = redis.call('ZRANGE', key(kind), 0, 0)[1]
    if not oldest then return redis.call('DEL', sizes) end
    all = drop(kind, oldest)
    redis.call('HINCRBY', key('crowded_out'), kind, 1)
  end
end

-- Puts a task of ours on its RQ queue, exactly as RQ's own enqueue would (a test holds the two side by side), and notes
-- by when it should have moved. Whatever happens to the RQ job, the sweep finds that note.
local trace -- of the fact that is being committed, as W3C writes a traceparent; only where the deployment traces

local function push_task(name, id, meta)
  local task, rq_id = TASKS[name], name .. '-' .. id
  local at = iso(NOW, '000')
  local hash = {}
  for i, part in ipairs(task.template) do
    hash[i] = part:gsub('%%JOB%%', id):gsub('%%NOW%%', at)
  end
  local rq_key = 'rq:job:' .. rq_id
  redis.call('DEL', rq_key) -- an earlier run's result, and its time to live
  redis.call('HSET', rq_key, unpack(hash))
  meta = trace and '{"traceparent":"' .. trace .. '"}' or meta
  if meta then redis.call('HSET', rq_key, 'meta', meta) end -- RQ's place for what a task brings along
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. task.queue)
  redis.call('RPUSH', 'rq:queue:' .. task.queue, rq_id)
  redis.call('ZADD', key('tasks'), NOW + PATIENCE, rq_id)
end

-- The first two of a job's events that wait for an endpoint, the job being that of `member`.
local function lane(endpoint, member)
  local job = member:match('^%S+')
  return redis.call('ZRANGE', key('lanes', endpoint), '[' .. job .. ' ', '(' .. job .. '!', 'BYLEX', 'LIMIT', 0, 2)
end

-- An event for an endpoint, as '<job> <entry of the stream, written so that it sorts> <type>'. Of a job's events only the first
-- is due; an earlier one that is sent again goes before. One task an endpoint sees to all that is due there.
local function deliver(endpoint, member)
  local due, state = key('deliveries', endpoint), key('state', endpoint)
  redis.call('ZADD', key('lanes', endpoint), 0, member)
  redis.call('HDEL', key('tries', endpoint), member)
  local first, second = unpack(lane(endpoint, member))
  if first ~= member then return end
  if second then redis.call('ZREM', due, second) end
  redis.call('ZADD', due, NOW, member)
  local busy, retry_at = unpack(redis.call('HMGET', state, 'busy', 'retry_at'))
  if not busy and retry_at and tonumber(retry_at) > NOW then
    redis.call('ZADD', key('tasks'), retry_at, 'notify-' .. endpoint)
  elseif not busy then
    redis.call('HSET', state, 'busy', 1)
    push_task('notify', endpoint)
  end
end

-- A place in the line for a vendor that takes only so many jobs in a window: when its turn should come. Turns that are
-- still waited for stand in turns:{vendor}; those that were taken, in the log of calls.
local function reserve(vendor, id, requests, window)
  local turns = key('turns', vendor)
  local waiting, before = redis.call('ZCARD', turns), nil
  if waiting >= requests then
    before = redis.call('ZRANGE', turns, waiting - requests, waiting - requests, 'WITHSCORES')[2]
  else
    before = redis.call('LINDEX', key('calls', vendor, 'submit'), requests - waiting - 1)
  end
  local last = redis.call('ZRANGE', turns, -1, -1, 'WITHSCORES')[2]
  local held = redis.call('HGET', key('vendor', vendor, 'submit'), 'retry_at')
  local at = math.max(NOW, before and before + window + 1 or 0, tonumber(last or 0), tonumber(held or 0))
  redis.call('ZADD', turns, at, id)
  return at
end
