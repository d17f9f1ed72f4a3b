#!lua
-- Enqueues again whatever should have moved and did not: tasks that RQ lost, whose worker died, or whose retry is due.
-- ARGV: limit → number enqueued, and number looked at. A task that is still waiting in its queue's line is left there: RQ's queues are first in, first
-- out, so one that was enqueued after the head of the queue has not been taken yet.

local heads = {} -- queue → when the task at its head was enqueued; false where there is none

local function head_since(queue)
  if heads[queue] == nil then
    local head = redis.call('LINDEX', queue, 0)
    heads[queue] = head and redis.call('HGET', 'rq:job:' .. head, 'enqueued_at') or false
  end
  return heads[queue]
end

local function needed(name, id)
  local status, archive, order = unpack(redis.call('HMGET', key('job', id), 'status', 'archive', '_order'))
  if name == 'archive' then return unquote(archive) == 'waiting' end
  if name == 'notify' then return redis.call('ZCARD', key('deliveries', id)) > 0 end
  return order and (status == '"pending"' or status == '"unconfirmed"')
end

local due, pushed = redis.call('ZRANGE', key('tasks'), '-inf', NOW, 'BYSCORE', 'LIMIT', 0, ARGV[1]), 0
for _, rq_id in ipairs(due) do
  local name, id = rq_id:match('^(%l+)%-(.+)$')
  if not (TASKS[name] and needed(name, id)) then
    redis.call('ZREM', key('tasks'), rq_id)
    if name == 'notify' then redis.call('HDEL', key('state', id), 'busy', 'run', 'until') end -- whoever had it has died, all sent
  else
    local queue = 'rq:queue:' .. TASKS[name].queue
    local since, state, meta = unpack(redis.call('HMGET', 'rq:job:' .. rq_id, 'enqueued_at', 'status', 'meta'))
    local head = head_since(queue)
    if head and since and state == 'queued' and since >= head then
      redis.call('ZADD', key('tasks'), NOW + PATIENCE, rq_id)
    else
      redis.call('LREM', queue .. ':intermediate', 0, rq_id)
      if name == 'notify' then redis.call('HSET', key('state', id), 'busy', 1) end
      push_task(name, id, meta)
      pushed = pushed + 1
    end
  end
end
for _, task in pairs(TASKS) do -- executions whose worker is gone
  redis.call('ZREMRANGEBYSCORE', 'rq:wip:' .. task.queue, '-inf', '(' .. math.floor(NOW / 1000))
end
return {pushed, #due}
