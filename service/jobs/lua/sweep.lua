#!lua
-- Enqueues again whatever should have moved and did not: tasks that RQ lost, whose worker died, or whose retry is due.
-- ARGV: limit → number enqueued. A task that is still waiting in its queue's line is left there: RQ's queues are first in, first
-- out, so one that was enqueued after the head of the queue has not been taken yet.

local task = ARCHIVE_TASK
local queue = 'rq:queue:' .. task.queue
local head = redis.call('LINDEX', queue, 0)
local head_since = head and redis.call('HGET', 'rq:job:' .. head, 'enqueued_at') or nil
local pushed = 0
for _, id in ipairs(redis.call('ZRANGE', key('tasks'), '-inf', NOW, 'BYSCORE', 'LIMIT', 0, ARGV[1])) do
  local rq_id = task.name .. '-' .. id
  local since = redis.call('HGET', 'rq:job:' .. rq_id, 'enqueued_at')
  local state = redis.call('HGET', 'rq:job:' .. rq_id, 'status')
  if head_since and since and state == 'queued' and since >= head_since then
    redis.call('ZADD', key('tasks'), NOW + task.patience, id)
  elseif unquote(redis.call('HGET', key('job', id), 'archive')) ~= 'waiting' then
    redis.call('ZREM', key('tasks'), id)
  else
    redis.call('LREM', queue .. ':intermediate', 0, rq_id)
    push_task(id)
    pushed = pushed + 1
  end
end
redis.call('ZREMRANGEBYSCORE', 'rq:wip:' .. task.queue, '-inf', '(' .. math.floor(NOW / 1000)) -- executions whose worker is gone
return pushed
