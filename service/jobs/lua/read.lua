#!lua flags=no-writes
-- Reads jobs as JSON. ARGV: 'get', id… → the JSON of each, or nil.
-- 'page', limit, before ('' for the newest), vendor, status, archive ('' for any) → JSONs, newest first, one more than
-- `limit` where there are more. The cost depends on the page, not on the number of jobs: ids sort by time, and each of the
-- few indexes that match gives at most one page.

local function get(id)
  local job = load_job(id)
  return job and job_json(job) or false
end

local function matches(name, vendor, status, archive)
  local v, s, a = name:match('([^:]+):([^:]+):([^:]+)$')
  return (vendor == '' or v == vendor) and (status == '' or s == status) and (archive == '' or a == archive)
end

local function page(limit, before, vendor, status, archive)
  local ids = {}
  local top = before == '' and '+' or '(' .. before
  for _, name in ipairs(redis.call('SMEMBERS', key('indexes'))) do
    if matches(name, vendor, status, archive) then
      for _, id in ipairs(redis.call('ZRANGE', name, top, '-', 'BYLEX', 'REV', 'LIMIT', 0, limit + 1)) do ids[#ids + 1] = id end
    end
  end
  table.sort(ids, function(a, b) return a > b end)
  local found = {}
  for i = 1, math.min(#ids, limit + 1) do found[i] = get(ids[i]) end
  return found
end

if ARGV[1] == 'page' then
  return page(tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5], ARGV[6])
end
local found = {}
for i = 2, #ARGV do found[i - 1] = get(ARGV[i]) end
return found
