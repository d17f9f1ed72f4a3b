#!lua flags=no-writes
-- How things stand, as samples: name, value, name, value… Each is a length or a look at one end, so the cost depends on the number of
-- vendors, statuses and endpoints, not on the number of jobs.

local told = {}

local function tell(value, name, ...)
  local labels = {}
  for i, label in ipairs({...}) do labels[i] = label end
  told[#told + 1] = 'callsheet_' .. name .. (#labels > 0 and '{' .. table.concat(labels, ',') .. '}' or '')
  told[#told + 1] = tostring(value)
end

local function label(name, value)
  return name .. '="' .. value .. '"'
end

local function since(at) -- of RQ's ISO-8601, in seconds
  local y, m, d, hour, minute, second = at:match('^(%d+)-(%d+)-(%d+)T(%d+):(%d+):([%d.]+)Z$')
  if m + 0 <= 2 then y = y - 1 end
  local days = 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400) + math.floor((153 * ((m + 9) % 12) + 2) / 5) + d - 719469
  return math.max(0, NOW / 1000 - (((days * 24 + hour) * 60 + minute) * 60 + second))
end

local function overdue(set) -- how many are due, and for how many seconds
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')[2]
  return redis.call('ZCOUNT', set, '-inf', NOW), math.max(0, first and (NOW - first) / 1000 or 0)
end

local alive = {web = 0, worker = 0, poller = 0}
for _, process in ipairs(redis.call('ZRANGE', key('processes'), NOW - 15000, '+inf', 'BYSCORE')) do
  local part = process:match('^%l+')
  if alive[part] then alive[part] = alive[part] + 1 end
end
for part, number in pairs(alive) do tell(number, 'processes', label('part', part)) end

for name, task in pairs(TASKS) do
  local queue, is = 'rq:queue:' .. task.queue, label('task', name)
  local head = redis.call('LINDEX', queue, 0)
  local at = head and redis.call('HGET', 'rq:job:' .. head, 'enqueued_at')
  tell(redis.call('LLEN', queue), 'queue_depth', is)
  tell(at and since(at) or 0, 'queue_oldest_seconds', is)
  tell(redis.call('ZCARD', 'rq:wip:' .. task.queue), 'tasks_running', is)
end
tell(redis.call('ZCARD', key('tasks')), 'tasks')

for _, index in ipairs(redis.call('SMEMBERS', key('indexes'))) do
  local vendor, status, archive = index:match('([^:]+):([^:]+):([^:]+)$')
  tell(redis.call('ZCARD', index), 'jobs', label('vendor', vendor), label('status', status), label('archive', archive))
end
for _, vendor in ipairs(ARGV) do
  local is, due, lag = label('vendor', vendor), overdue(key('polls', vendor))
  tell(due, 'polls_due', is)
  tell(lag, 'poll_lag_seconds', is)
  tell(redis.call('HEXISTS', key('vendor', vendor), 'retry_at'), 'vendor_unwell', is, label('kind', 'read'))
  tell(redis.call('HEXISTS', key('vendor', vendor, 'submit'), 'retry_at'), 'vendor_unwell', is, label('kind', 'submit'))
end
tell(overdue(key('deadlines')), 'deadlines_overdue')
tell(redis.call('ZCARD', key('quarantine')), 'quarantine')

local waiting, failing, enabled = 0, 0, redis.call('HKEYS', key('routes'))
for _, endpoint in ipairs(enabled) do
  waiting = waiting + redis.call('ZCARD', key('lanes', endpoint))
  failing = failing + redis.call('HEXISTS', key('state', endpoint), 'retry_at')
end
tell(#enabled - failing, 'endpoints', label('state', 'well'))
tell(failing, 'endpoints', label('state', 'failing'))
tell(redis.call('HLEN', key('endpoints')) - #enabled, 'endpoints', label('state', 'disabled'))
tell(waiting, 'deliveries_waiting')
return told
