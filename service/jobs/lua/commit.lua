#!lua
-- The door's inside: applies facts to jobs. Each ARGV is one fact (scripts.Commit, msgpack); each is committed whole:
-- state, timeline, stream entry, pub/sub message, indexes, due times and the RQ job, or nothing.
-- Answers one {outcome, job id} a fact, in order; where it has ended the job, with what (see `ended`). A fact that cannot be applied answers {'error', reason} and harms no other.

local commit -- parked facts are committed by the fact that registers their job
local ended -- what a fact has ended a job with: status, source, ms since the vendor had it. A parked one may, for the one that it waited for

local function index(job) -- each job stands in exactly one index
  return key('jobs', unquote(job.vendor), unquote(job.status), unquote(job.archive or '"none"'))
end

local function move(job, id, change)
  local before = job._indexed
  change()
  local after = index(job)
  if before ~= after then
    if before then redis.call('ZREM', before, id) end
    redis.call('ZADD', after, 0, id)
    redis.call('SADD', key('indexes'), after)
    job._indexed = after
  end
end

local function announce(job, id, type)
  local events = job._events or ''
  if events:find(type .. ' ', 1, true) then return end -- once per job, whatever turns it takes afterwards
  job._events = events .. type .. ' '
  local event = '{"id":"evt_' .. id:sub(5) .. '_' .. type:sub(5) .. '","type":"' .. type .. '","timestamp":"' .. iso(NOW)
    .. '","data":' .. job_json(job) .. '}'
  local fields = {'event', event, trace and 'trace', trace}
  local entry = redis.call('XADD', key('stream'), 'MAXLEN', '~', STREAM_LENGTH, '*', unpack(fields))
  local member = string.format('%s %s-%09d %s', id, entry:match('%d+'), entry:match('%d+$'), type)
  local routes = redis.call('HGETALL', key('routes'))
  for i = 1, #routes, 2 do -- '<types>|<vendors>', each word between spaces; nothing is all of them
    local types, vendors = routes[i + 1]:match('^(.*)|(.*)$')
    local wanted = types == '' or types:find(' ' .. type .. ' ', 1, true)
    if wanted and (vendors == '' or vendors:find(' ' .. unquote(job.vendor) .. ' ', 1, true)) then deliver(routes[i], member) end
  end
  redis.call('PUBLISH', key('events'), event)
  redis.call('PUBLISH', key('events', id), event)
end

local function is_verdict(status)
  return status == 'succeeded' or status == 'failed' or status == 'cancelled'
end

local function set_archive(job, id, archive)
  move(job, id, function() job.archive = quote(archive) end)
  if archive == 'waiting' then
    job._attempts = nil
    push_task('archive', id)
  else
    redis.call('ZREM', key('tasks'), 'archive-' .. id)
  end
  if archive == 'stored' then job.stored_at = quote(iso(NOW)) end
  if ARCHIVE_EVENTS[archive] then announce(job, id, ARCHIVE_EVENTS[archive]) end
end

-- The outputs that a verdict brings (or no longer has) set our copy in motion.
local function follow_up(job, id, status)
  local archive = unquote(job.archive or '"none"')
  if status == 'succeeded' and (job.outputs or '[]') ~= '[]' then
    if archive == 'none' or archive == 'failed' then set_archive(job, id, 'waiting') end
  elseif archive == 'waiting' then
    set_archive(job, id, 'none')
  end
end

-- What a job that is to be sent waits for: a task, a turn.
local function stop_waiting(job, id, status)
  job.scheduled_at, job._attempts = nil, nil
  redis.call('ZREM', key('turns', unquote(job.vendor)), id)
  if status ~= 'pending' and status ~= 'unconfirmed' then redis.call('ZREM', key('tasks'), 'submit-' .. id) end
end

local function set_status(job, id, status, told)
  local before = unquote(job.status)
  move(job, id, function() job.status = quote(status) end)
  if before == 'pending' or before == 'unconfirmed' then stop_waiting(job, id, status) end
  if status == 'processing' then job.started_at = told.started_at or job.started_at or quote(iso(NOW)) end
  if is_verdict(status) then
    job.started_at = told.started_at or job.started_at
    job.completed_at = told.completed_at or quote(iso(NOW))
    job.progress = status == 'succeeded' and '100' or job.progress
    job.error = told.error -- a verdict that overrules another takes its error away with it
    follow_up(job, id, status)
  end
  if is_verdict(status) or status == 'expired' then
    redis.call('ZREM', key('deadlines'), id)
    redis.call('ZREM', key('polls', unquote(job.vendor)), id)
  end
  if STATUS_EVENTS[status] then announce(job, id, STATUS_EVENTS[status]) end
end

local function fill(job, told, names) -- only what is not known yet
  local filled = false
  for _, name in ipairs(names) do
    if told[name] and not job[name] then
      job[name] = told[name]
      filled = true
    end
  end
  return filled
end

local function advance(job, told)
  if told.progress and tonumber(told.progress) > tonumber(job.progress or '-1') then
    job.progress = told.progress
    return true
  end
  return false
end

local function settle_cost(job, told)
  if not told.cost or told.cost == job.cost then return false end
  if job.cost then -- the estimate is ours and stays beside the vendor's charge
    local known, news = cjson.decode(job.cost), cjson.decode(told.cost)
    if news.estimated == cjson.null then news.estimated = known.estimated end
    if news.charged == cjson.null then news.charged = known.charged end
    if cjson.encode({news.estimated, news.charged, news.unit}) == cjson.encode({known.estimated, known.charged, known.unit}) then return false end
    told.cost = cjson.encode(news)
  end
  job.cost = told.cost
  return true
end

local LATE = {'model', 'submitted_at', 'started_at', 'cost'}
local SAME = {'model', 'submitted_at', 'started_at', 'result', 'outputs', 'error'}

local function apply_status(job, id, fact, told)
  local status, current = fact.status, unquote(job.status)
  local moves = status == 'queued' or status == 'processing'
  if moves or (is_verdict(status) and (fact.source == 'callback' or fact.source == 'poll')) then -- the vendor has it
    job.submitted_at = told.submitted_at or job.submitted_at or quote(iso(NOW))
    if (current == 'pending' or current == 'unconfirmed') and status ~= 'queued' then
      set_status(job, id, 'queued', told) -- subscribers hear so before they hear what became of it
    end
  end
  advance(job, told)
  settle_cost(job, told)
  for _, name in ipairs({'model', 'result'}) do job[name] = told[name] or job[name] end
  if job.archive ~= '"stored"' then job.outputs = told.outputs or job.outputs end -- what is at home stays described
  set_status(job, id, status, told)
end

local function apply_archive(job, id, fact, told)
  local archive = unquote(job.archive or '"none"')
  if fact.archive == archive then return 'same' end
  if fact.archive == 'waiting' and archive ~= 'failed' then return 'stale' end
  if fact.archive ~= 'waiting' and archive ~= 'waiting' and not (fact.archive == 'stored' and archive == 'failed') then
    return 'stale'
  end
  job.outputs = told.outputs or job.outputs
  set_archive(job, id, fact.archive)
  return 'apply'
end

-- Of a job that takes two of the vendor's jobs, what is about the first one: everything until that has succeeded, then
-- what names it, and until the second is sent what the vendor says without naming either.
local function about_step(job, fact)
  local status, told = fact.status, fact.told
  if not job._step or not (fact.problem or status == 'queued' or status == 'processing' or is_verdict(status)) then return false end
  if job._step_at ~= 'succeeded' then return true end
  if told.vendor_job_id or told.model then return told.model == job._step or (job._step_id and told.vendor_job_id == job._step_id) end
  return job.status == '"pending"' and (fact.source == 'callback' or fact.source == 'poll')
end

local STEPS = {queued = 1, processing = 2, succeeded = 3}

-- It is asked for like any other job; once it has succeeded, the job itself can be sent, and nothing about it counts any more.
local function apply_step(job, id, fact, told)
  local status, current = fact.status, unquote(job.status)
  local known, rank = STEPS[job._step_at] or 0, STEPS[status]
  if rank == known then return 'same' end
  if (current ~= 'pending' and current ~= 'unconfirmed') or known == 3 or (rank and rank < known) then return 'stale' end
  if is_verdict(status) and fact.witness == 'hinted' then return 'ask' end
  if not rank then -- it failed: the job was never sent
    set_status(job, id, status, told)
    return 'apply'
  end
  if current == 'unconfirmed' then set_status(job, id, 'pending', told) end
  job._step_at = status
  if status == 'succeeded' then
    job.result = told.result
    redis.call('ZREM', key('polls', unquote(job.vendor)), id)
    push_task('submit', id)
  else
    redis.call('ZREM', key('tasks'), 'submit-' .. id)
  end
  return 'apply'
end

-- What the fact does to the job. One of the table's decisions, or: 'update' (same status, something new in it),
-- 'note' (nothing to decide: an attempt that failed, an id or metadata attached).
local function decide(job, id, fact, told)
  if fact.problem then return fact.source == 'callback' and 'ask' or 'note' end
  if fact.archive then return apply_archive(job, id, fact, told) end
  if not fact.status then return 'note' end
  if about_step(job, fact) then return apply_step(job, id, fact, told) end
  local current, witness = unquote(job.status), WITNESSES[fact.witness]
  local cell = witness * 64 + STATUSES[current] * 8 + STATUSES[fact.status] + 1
  local letter = RULES:sub(cell, cell)
  if letter == 'p' then
    apply_status(job, id, fact, told)
    return 'apply'
  end
  if letter == 's' then return 'ask' end
  if letter == 't' then return fill(job, told, LATE) and 'update' or 'stale' end
  local news = settle_cost(job, told)
  news = advance(job, told) or news
  news = fill(job, told, SAME) or news
  local archive = unquote(job.archive or '"none"')
  if told.outputs and told.outputs ~= job.outputs and fact.source == 'poll' and (archive == 'waiting' or archive == 'failed') then
    job.outputs = told.outputs -- a fresh link in place of a dead one
    news = true
  end
  if news then follow_up(job, id, current) end
  return news and 'update' or 'same'
end

-- The vendor's id of what it can be asked about.
local function asked_for(job)
  return job.vendor_job_id or (job._step_at ~= 'succeeded' and job._step_id) or nil
end

-- When the vendor is asked next. fact.ask is its rhythm in ms; without it the vendor cannot be asked at all.
local function schedule(job, id, fact, decision, linked)
  local ask = fact.ask
  if not ask or not asked_for(job) then return end
  local polls = key('polls', unquote(job.vendor))
  local done = is_verdict(unquote(job.status))
  if decision == 'ask' or fact.poll_now then
    redis.call('ZADD', polls, NOW, id)
  elseif fact.source == 'poll' then
    local expires = tonumber(job._expires)
    local wait = math.max(ask.every, math.min(ask.slowest, (NOW - tonumber(job._since)) / 10))
    if (done and (is_verdict(fact.status) or fact.problem)) or NOW >= expires then -- nothing left to ask for
      redis.call('ZREM', polls, id)
    else -- one last look just before the deadline
      redis.call('ZADD', polls, math.max(NOW + ask.every, math.min(NOW + wait, expires - 1000)), id)
    end
  elseif linked and not done then
    redis.call('ZADD', polls, 'NX', NOW + ask.grace, id)
  end
end

local WHY = {same = 'known already', stale = 'older than what is known', ask = 'the vendor is asked', update = 'more about the same status'}

local function remember(job, id, fact, decision, before, linked, of_step)
  if fact.source == 'poll' and (decision == 'same' or decision == 'stale') then return end -- a poll without news is no news
  local trouble = fact.problem and fact.source == 'poll' and fact.problem or nil
  if trouble and job._trouble == trouble then return end -- said once, however often it is met
  job._trouble = trouble
  local applied = decision == 'apply' or decision == 'update' or (decision == 'note' and not fact.problem)
  if not applied and redis.call('LLEN', key('timeline', id)) >= TIMELINE_LENGTH then
    job._unlisted = string.format('%d', (job._unlisted or 0) + 1)
    return
  end
  local why = WHY[decision] or (decision == 'apply' and fact.status and ('was ' .. before)) or ''
  if of_step and decision == 'apply' then why = 'the vendor\'s job before it: ' .. unquote(job._step) end
  if decision == 'ask' and not (fact.ask and asked_for(job)) then
    why = 'the vendor cannot be asked: ' .. (fact.ask and 'its job id is not known' or 'no credentials')
  elseif decision == 'ask' and fact.status then
    why = 'not counted until ' .. why
  end
  local entry = {'"at":' .. quote(iso(NOW)), '"source":' .. quote(fact.source),
    '"status":' .. (fact.status and quote(fact.status) or 'null'), '"applied":' .. (applied and 'true' or 'false'), '"why":' .. quote(why)}
  if fact.received then entry[#entry + 1] = '"received_at":' .. quote(iso(fact.received)) end
  if fact.archive then entry[#entry + 1] = '"archive":' .. quote(fact.archive) end
  if linked then entry[#entry + 1] = '"vendor_job_id":' .. fact.told.vendor_job_id end
  if fact.problem then entry[#entry + 1] = '"problem":' .. quote(fact.problem) end
  if fact.detail then entry[#entry + 1] = '"detail":' .. fact.detail end
  if fact.raw and decision ~= 'same' then -- apart, so that it can be forgotten before the rest
    job._raws = string.format('%d', (job._raws or 0) + 1)
    redis.call('HSET', key('raw', id), job._raws, fact.raw)
    redis.call('EXPIRE', key('raw', id), RAW_SECONDS)
    entry[#entry + 1] = '"raw":' .. job._raws
  end
  redis.call('RPUSH', key('timeline', id), '{' .. table.concat(entry, ',') .. '}')
end

-- Adds a job that the vendor has taken to the sums of the day it was made on, or takes it away from them.
local function count_cost(job, sign)
  if not (job.cost and job.submitted_at) then return end
  local cost, day = cjson.decode(job.cost), job.created_at:sub(2, 11)
  local function add(what, amount)
    local field = '[' .. job.vendor .. ',' .. (job.model or 'null') .. ',' .. cjson.encode(cost.unit) .. ',' .. quote(what) .. ']'
    redis.call('HINCRBYFLOAT', key('costs', day), field, string.format('%.6f', sign * amount))
  end
  local estimated, charged = tonumber(cost.estimated), tonumber(cost.charged)
  redis.call('SADD', key('cost_days'), day)
  add('jobs', 1)
  if estimated then add('estimated', estimated) end
  if charged then add('charged', charged) end
  if estimated and charged then add('difference', charged - estimated) end
  if not (estimated or charged) then add('unknown', 1) end
end

local function save(id, job, stored)
  local changed, gone = {}, {}
  if job.cost ~= stored.cost or job.model ~= stored.model or (job.submitted_at and not stored.submitted_at) then
    count_cost(stored, -1)
    count_cost(job, 1)
  end
  for name, value in pairs(job) do
    if name ~= '_indexed' and stored[name] ~= value then
      changed[#changed + 1] = name
      changed[#changed + 1] = value
    end
  end
  for name in pairs(stored) do
    if job[name] == nil then gone[#gone + 1] = name end
  end
  if #changed > 0 then redis.call('HSET', key('job', id), unpack(changed)) end
  if #gone > 0 then redis.call('HDEL', key('job', id), unpack(gone)) end
end

local function park(vendor, vendor_job_id, packed)
  local parked, first = key('parked', vendor, vendor_job_id), ''
  if redis.call('RPUSH', parked, packed) > PARKED_LENGTH then first = redis.call('LPOP', parked) end
  redis.call('EXPIRE', parked, PARKED_SECONDS)
  keep('parked', vendor .. ':' .. vendor_job_id, #packed - #first)
end

local function unpark(id, vendor, vendor_job_id)
  local parked = key('parked', vendor, vendor_job_id)
  local found = redis.call('LRANGE', parked, 0, -1)
  if #found == 0 then return end
  drop('parked', vendor .. ':' .. vendor_job_id)
  for _, packed in ipairs(found) do
    local applied = pcall(function()
      local wrapped = cmsgpack.unpack(packed)
      local fact = cmsgpack.unpack(wrapped.fact)
      fact.job, fact.received = id, wrapped.at
      commit(fact)
    end)
    if not applied then park(vendor, vendor_job_id, packed) end -- one that cannot be read spoils no other
  end
end

local function quarantine(fact, id)
  local kept, letter = fact.quarantine, key('quarantine', fact.quarantine.id)
  if redis.call('HINCRBY', letter, 'count', 1) == 1 then
    redis.call('HSET', letter, 'id', kept.id, 'vendor', fact.vendor, 'job_id', id or '', 'problem', fact.problem, 'detail', fact.detail or 'null',
      'received_at', iso(NOW), 'subject', kept.subject, 'body', kept.body)
    keep('quarantine', kept.id, #kept.body)
  end
  if redis.call('EXISTS', letter) == 1 then redis.call('HSET', letter, 'last_received_at', iso(NOW)) end
end

-- A new row, or the answer that an earlier request with the same idempotency key got.
local function create(fact)
  local id, idem = fact.job, fact.idempotency
  if idem then
    local known = redis.call('GET', key('idempotency', idem.key))
    if known then
      local digest, existing = known:match('^(%S+) (%S+)$')
      return nil, {digest == idem.digest and 'repeated' or 'conflict', existing}
    end
  end
  if fact.vendor_job_id then
    local existing = redis.call('HGET', key('vendor_jobs', fact.vendor), fact.vendor_job_id)
    if existing then return nil, {'taken', existing} end
  end
  if idem then redis.call('SET', key('idempotency', idem.key), idem.digest .. ' ' .. id, 'EX', IDEMPOTENCY_SECONDS) end
  local expires = NOW + fact.deadline
  redis.call('ZADD', key('deadlines'), expires, id)
  local job = {id = quote(id), vendor = quote(fact.vendor), status = '"pending"', created_at = quote(iso(NOW)),
    expires_at = quote(iso(expires)), _expires = string.format('%d', expires), _since = string.format('%d', NOW)}
  move(job, id, function() end)
  if fact.order then
    job.cost, job._order, job._step = fact.told.cost, fact.order, fact.step
    if fact.line then
      local at = reserve(fact.vendor, id, fact.line.requests, fact.line.window)
      if at > NOW then job.scheduled_at = quote(iso(at)) end
    end
    push_task('submit', id)
  end
  return job
end

local function link(job, id, fact)
  local field = about_step(job, fact) and '_step_id' or 'vendor_job_id'
  if not fact.vendor_job_id or job[field] then return false end
  local fresh = redis.call('HSETNX', key('vendor_jobs', fact.vendor), fact.vendor_job_id, id) == 1
  if not fresh then return nil end -- another job of ours has this id
  job[field] = fact.told.vendor_job_id
  job._since = string.format('%d', NOW)
  return true
end

-- When the task that the fact is about is run again: after retry_in ms, never (none), at once and from the beginning (0).
local function reschedule(job, id, fact)
  local rq_id = fact.task .. '-' .. id
  if fact.problem then
    job._attempts = string.format('%d', (job._attempts or 0) + 1)
    redis.call('ZREM', key('turns', unquote(job.vendor)), id) -- what is not ready keeps no place in the line
  end
  if not fact.retry_in then
    redis.call('ZREM', key('tasks'), rq_id)
  elseif fact.retry_in == 0 then
    job._attempts = nil
    push_task(fact.task, id)
  else
    redis.call('ZADD', key('tasks'), 'XX', NOW + fact.retry_in, rq_id)
    if fact.task == 'submit' and job.status == '"pending"' then job.scheduled_at = quote(iso(NOW + fact.retry_in)) end
  end
end

local function find(fact)
  if fact.job then return fact.job end
  return fact.vendor_job_id and redis.call('HGET', key('vendor_jobs', fact.vendor), fact.vendor_job_id) or nil
end

commit = function(fact, packed)
  fact.told = fact.told or {}
  trace = fact.trace
  local id, job, answer = find(fact), nil, nil
  fact.create = fact.create and redis.call('EXISTS', key('job', id)) == 0 -- a client that lost our answer says it again
  if fact.create then
    job, answer = create(fact)
    if answer then return answer end
  elseif not id then
    if fact.quarantine then quarantine(fact) end
    if fact.quarantine or not fact.vendor_job_id then return {'quarantined', ''} end -- nobody to note it on, or to wait for
    park(fact.vendor, fact.vendor_job_id, cmsgpack.pack({at = NOW, fact = packed}))
    return {'parked', ''}
  else
    job = load_job(id)
    if not job then return {'unknown_job', id} end
    job._indexed = index(job)
  end
  if fact.sent and job._sent == fact.sent then return {'apply', id} end -- the same sending, whose answer was lost
  local stored = {}
  if not fact.create then
    for name, value in pairs(job) do stored[name] = value end
    stored._indexed = nil
  end
  for name, value in pairs(fact.expect or {}) do
    if (job[name] or DEFAULTS[name] or 'null') ~= value then return {'changed', id} end
  end
  local known = about_step(job, fact) and job._step_id or job.vendor_job_id
  if fact.vendor_job_id and known and known ~= fact.told.vendor_job_id and not fact.problem then
    return {'other_job', id}
  end
  local linked, since = false, tonumber(job._since)
  if not fact.problem or fact.witness == 'told' or fact.source == 'submit' then -- what is not understood may name the job
    linked = link(job, id, fact)
    if linked == nil and not fact.problem then
      return {'taken', redis.call('HGET', key('vendor_jobs', fact.vendor), fact.vendor_job_id)}
    end
  end
  local before = unquote(job.status)
  if not fact.problem then
    job.metadata = fact.told.metadata or job.metadata
    job._prepared = fact.prepared or job._prepared
    if fact.create then job.model = fact.told.model end
  end
  local of_step = about_step(job, fact)
  local decision = decide(job, id, fact, fact.told)
  local status = unquote(job.status)
  if status ~= before and (is_verdict(status) or status == 'expired') then
    ended = {status, fact.source, string.format('%d', NOW - since)}
  end
  if fact.task then reschedule(job, id, fact) end
  if fact.sent and decision == 'apply' then
    job._sent, job._sent_at = fact.sent, string.format('%d', NOW)
  end
  schedule(job, id, fact, decision, linked)
  remember(job, id, fact, decision, before, linked, of_step)
  if fact.quarantine then quarantine(fact, id) end
  save(id, job, stored)
  if linked then unpark(id, fact.vendor, fact.vendor_job_id) end
  return {decision, id}
end

local answers = {}
for i, packed in ipairs(ARGV) do
  ended = nil
  local fine, answer = pcall(function() return commit(cmsgpack.unpack(packed), packed) end)
  answers[i] = fine and answer or {'error', type(answer) == 'table' and answer.err or tostring(answer)}
  for _, word in ipairs(fine and ended or {}) do answers[i][#answers[i] + 1] = word end
end
return answers
