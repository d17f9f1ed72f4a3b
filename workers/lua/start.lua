-- Takes a task from the intermediate list into RQ's registry of started jobs, as RQ's own worker does in eight steps.
-- ARGV: queue, RQ job id, execution id, worker name, now (RQ's format), now (s), expiry (s) → the job's data and meta, or nil where RQ has no such job.
local queue, id, execution = ARGV[1], ARGV[2], ARGV[3]
local job = 'rq:job:' .. id
redis.call('LREM', 'rq:queue:' .. queue .. ':intermediate', 1, id)
local data, meta = unpack(redis.call('HMGET', job, 'data', 'meta'))
if not data then return nil end
redis.call('HSET', job, 'status', 'started', 'started_at', ARGV[5], 'last_heartbeat', ARGV[5], 'worker_name', ARGV[4])
redis.call('EXPIRE', job, 604800) -- should nobody come to finish it; while it runs it is needed by its id alone
local key = 'rq:execution:' .. id .. ':' .. execution
redis.call('HSET', key, 'id', execution, 'created_at', ARGV[6], 'last_heartbeat', ARGV[6], 'worker_name', ARGV[4])
redis.call('EXPIREAT', key, ARGV[7])
redis.call('ZADD', 'rq:executions:' .. id, ARGV[7], execution)
redis.call('EXPIREAT', 'rq:executions:' .. id, ARGV[7])
redis.call('ZADD', 'rq:wip:' .. queue, ARGV[7], id .. ':' .. execution)
return {data, meta}
