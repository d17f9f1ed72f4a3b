-- Ends an execution in RQ's registries. ARGV: queue, RQ job id, execution id, outcome, now (RQ's format), now (s).
-- Outcome: 'finished', 'failed' (RQ's own code registers the failure after this), or 'again': back to the head of its queue.
local queue, id, execution, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local job = 'rq:job:' .. id
redis.call('ZREM', 'rq:wip:' .. queue, id .. ':' .. execution)
redis.call('DEL', 'rq:execution:' .. id .. ':' .. execution)
redis.call('ZREM', 'rq:executions:' .. id, execution)
if redis.call('EXISTS', job) == 0 then return end
if outcome == 'again' then
  redis.call('HSET', job, 'status', 'queued')
  redis.call('LPUSH', 'rq:queue:' .. queue, id)
  return
end
redis.call('HSET', job, 'status', outcome, 'ended_at', ARGV[5], 'last_heartbeat', ARGV[5])
if outcome == 'finished' then
  local ttl = tonumber(redis.call('HGET', job, 'result_ttl') or '500')
  redis.call('ZADD', 'rq:finished:' .. queue, ARGV[6] + ttl, id)
  redis.call('ZREMRANGEBYSCORE', 'rq:finished:' .. queue, '-inf', '(' .. ARGV[6])
  redis.call('EXPIRE', job, ttl)
end
