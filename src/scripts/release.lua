-- Gives the lock up, if it is still ours: to the waiter that has waited longest, or to nobody.
--
-- The lock changes hands inside this script. Its new value is "in transit" until the waiter, woken by
-- the baton, claims it with acquire.lua; the baton is that value. A baton that nobody claims expires
-- with the lock key. The server serves the client that has blocked longest, and none that died.
--
-- A lock that must stay taken for a while has a value that nobody owns: a renewal that comes late, or
-- another who knows the owner, cannot make it last.
--
-- KEYS[1] lock key
-- KEYS[2] fence key
-- KEYS[3] waiters
-- KEYS[4] baton
-- KEYS[5] statistics, with ARGV[7]
-- KEYS[6] runs, with ARGV[7]
-- ARGV[1] our value
-- ARGV[2] our fence and TTL, '<fence>|<TTL>', or '0' for a lock in transit that is handed on
-- ARGV[3] TTL of the fence key in ms, and of statistics and runs
-- ARGV[4] value in transit: a fresh token and ':0||'
-- ARGV[5] time to claim it in ms
-- ARGV[6] how long the lock must stay taken in ms, or '0'; like all that follows it may be left out
-- ARGV[7] this grant for the runs: fence, host, pid, program, duration in ms
-- ARGV[8..] pairs of a statistic and what it grows by
-- Returns 1 when released, 0 when the key is gone or somebody else's.
-- Cost: O(statistics given), 4 commands without a waiter, 6 with one, and those of the statistics; a few times
--   a week O(statistics kept), 2 more; out of memory 2 more for what needs some.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  -- A replica, which knows of the past only, refuses what might write, as this does not.
  local told = redis.pcall('GETEX', KEYS[1])
  return type(told) == 'table' and string.find(told.err, 'READONLY') and told or 0
end

-- Out of memory, what needs some may follow a write that needs none; and the lock's time is over in any case.
local function put(key, value, ms)
  if redis.pcall('SET', key, value, 'PX', ms).err then
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    redis.call('SET', key, value, 'PX', ms)
  end
end

-- Whatever becomes of the lock, this grant was given back.
if ARGV[2] ~= '0' then put(KEYS[2], ARGV[2], ARGV[3]) end
if (ARGV[6] or '0') ~= '0' then
  local nobody = string.match(ARGV[4], '^[^:]*') .. string.match(ARGV[1], ':.*$')
  put(KEYS[1], nobody, ARGV[6])
elseif redis.call('EXISTS', KEYS[3]) == 1 then
  put(KEYS[1], ARGV[4], ARGV[5])
  redis.call('LPUSH', KEYS[4], ARGV[4])
  redis.call('PEXPIRE', KEYS[4], ARGV[5])
else
  redis.call('DEL', KEYS[1])
end
-- Nothing below may undo what is done: a statistic that cannot be kept is not.
if ARGV[7] then
  redis.pcall('LPUSH', KEYS[6], ARGV[7])
  redis.pcall('LTRIM', KEYS[6], 0, 9)
  redis.pcall('PEXPIRE', KEYS[6], ARGV[3])
end
local week
for n = 8, #ARGV, 2 do
  local sum = redis.pcall('HINCRBY', KEYS[5], ARGV[n], ARGV[n + 1])
  if sum == tonumber(ARGV[n + 1]) then week = string.match(ARGV[n], '^[gd](%d+)%.') or week end
end
-- Spans are counted by week ("g<week>.<bucket>", "d<week>.<bucket>"): with the first of a week and bucket
-- those go that are too old to teach anything.
local kept = week and redis.pcall('HGETALL', KEYS[5]) or {}
local outdated = {}
for n = 1, #kept, 2 do
  local old = string.match(kept[n], '^[gd](%d+)%.')
  if old and tonumber(old) + 4 < tonumber(week) and #outdated < 1000 then outdated[#outdated + 1] = kept[n] end
end
if #outdated > 0 then redis.pcall('HDEL', KEYS[5], unpack(outdated)) end
if #ARGV >= 8 then redis.pcall('PEXPIRE', KEYS[5], ARGV[3]) end
return 1
