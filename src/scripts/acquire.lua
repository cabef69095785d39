-- Grants the lock if nobody holds it, and says who holds it otherwise.
--
-- A request whose reply was lost may be sent again with the same owner token: it is recognised and
-- answered with the grant that it made, not with "held". The fence is the larger of the last fence
-- plus one and the server's clock in microseconds: it grows with every grant, also when the last one
-- was lost by eviction, restart or failover (a counter alone starts again and repeats). The fence key
-- is "<fence>+|<who>|<TTL>" while the grant is open and "<fence>|<TTL>" once it is given back: an open
-- grant without a lock key is a takeover.
--
-- A lock that is free costs least: its value is made first, and set if the key is not there; what was
-- there before in the fence key tells afterwards whether that fence was good enough.
--
-- A lock in transit (handed over, not yet claimed; its fence is 0) is free for the waiter that popped its
-- baton. A baton that still lies in its list has nobody to pop it, for all who wait block on that list: then
-- it is free for anybody.
--
-- KEYS[1] lock key
-- KEYS[2] fence key
-- KEYS[3] waiters, a sorted set: member "id|host|pid|program", score its ticket
-- KEYS[4] baton, a list
-- KEYS[5] statistics, a hash
-- KEYS[6] runs, a list of past grants, newest first
-- ARGV[1] owner token, without ':'
-- ARGV[2] who asks: host, pid, program; shown to others, never compared
-- ARGV[3] TTL of the lock in ms
-- ARGV[4] TTL of the fence key in ms, and of statistics and runs
-- ARGV[5] '0' to keep no statistics, '1' to keep them, '2' to not count that it was held (which may
--   fail for want of memory, and nothing else with them)
-- ARGV[6] the baton that we popped, if we did
-- ARGV[7] our ticket then: all tickets up to it are served or dead
-- Returns the value when granted, {the value, 'takeover'} after a grant that was never given back, {holder's
--   value, remaining TTL in ms or -1} when held.
-- Cost: O(1), 3 commands when free, at most 15; with a baton O(waiters that died) more.
local function value(fence) return ARGV[1] .. ':' .. fence .. '|' .. ARGV[2] end

-- Leaves the fence, open; answers what was there.
local function leave(fence)
  return redis.pcall('SET', KEYS[2], fence .. '+|' .. ARGV[2] .. '|' .. ARGV[3], 'PX', ARGV[4], 'GET')
end

local time = redis.call('TIME')
local us = time[2]
if #us < 6 then us = string.rep('0', 6 - #us) .. us end
local fence = time[1] .. us
local ours, baton = value(fence), ARGV[6]
local stored = not baton and redis.pcall('SET', KEYS[1], ours, 'NX', 'PX', ARGV[3])
-- A replica knows of the past only.
if stored and stored.err and string.find(stored.err, 'READONLY') then return stored end
if not stored or stored.err then
  -- Held; or out of memory, which is when a sweep is wanted.
  local held = redis.call('GET', KEYS[1])
  if held and held ~= baton then
    if string.sub(held, 1, #ARGV[1] + 1) == ARGV[1] .. ':' then
      -- A late duplicate of the request must not undo what the holder has asked for since.
      if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
      return held
    end
    local moving = string.find(held, '^[^:]*:0|')
    if moving and redis.call('LPOP', KEYS[4]) == held then
      redis.call('DEL', KEYS[3])
    else
      if ARGV[5] == '1' then
        redis.pcall('HINCRBY', KEYS[5], 'held', 1)
        redis.pcall('PEXPIRE', KEYS[5], ARGV[4])
      end
      return {held, redis.call('PTTL', KEYS[1])}
    end
  end
  if redis.pcall('SET', KEYS[1], ours, 'PX', ARGV[3]).err then
    -- After a write that needs no memory a script may go on to those that do.
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    redis.call('SET', KEYS[1], ours, 'PX', ARGV[3])
  end
  if baton then redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[7]) end
end

local last = leave(fence)
if not last then return ours end
if last.err then
  -- Another type has that name: no fence, no grant.
  redis.call('DEL', KEYS[1])
  return last
end
-- Given back before this instant, by the server's clock: 16 digits as ours, and no '+'.
if string.byte(last, 17) == 124 and #fence == 16 and last < fence then return ours end

local number, open, rest = string.match(last, '^(%d+)(%+?)|?(.*)$')
if number and tonumber(number) >= 2 ^ 53 - 1 then
  -- Nobody can count on from there.
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[2], last, 'PX', ARGV[4])
  return redis.error_reply('ERR the last fence is too large to count on from; delete the fence key')
end
if number and tonumber(number) >= tonumber(fence) then
  fence = string.format('%.0f', tonumber(number) + 1)
  ours = value(fence)
  redis.call('SET', KEYS[1], ours, 'PX', ARGV[3])
  leave(fence)
end
if open ~= '+' then return ours end
-- It is what became of somebody's grant: also where this one keeps no statistics, and somebody does.
if ARGV[5] ~= '0' or redis.call('EXISTS', KEYS[5], KEYS[6]) > 0 then
  if ARGV[5] ~= '0' then redis.pcall('HINCRBY', KEYS[5], 'takeover', 1) end
  redis.pcall('LPUSH', KEYS[6], number .. '|' .. rest .. '|-1')
  redis.pcall('LTRIM', KEYS[6], 0, 9)
  redis.pcall('PEXPIRE', KEYS[6], ARGV[4])
end
return {ours, 'takeover'}
