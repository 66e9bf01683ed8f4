"""What the Redis store has its server do as one step: the scripts, in Lua.

They decide nothing: a session is written if it still has the *version* that the writer has decided on, else it is left
alone and its state is given back. All keys of a script are of one bucket, which is one slot of a cluster.
"""

WRITE = """#!lua
-- KEYS: era state whole deltas packs once open updated gone owned; and a stream and packs that were built
local time = redis.call('TIME')
local era = redis.call('HMGET', KEYS[1], 'n', 'count')
if era[1] ~= ARGV[1] then return {3} end
for place = 14, 13 + tonumber(ARGV[13]) do -- keys that count once: whatever was stored under one is the answer
    local used = redis.call('HGET', KEYS[6], ARGV[place])
    if used then return {2, place - 14, used} end
end
local now = redis.call('HMGET', KEYS[2], 'v', 'h', 'r', 'c')
local moved = (now[1] or '') ~= ARGV[2]
if not moved and ARGV[3] ~= '' then -- the writer's idea of this server's time, by which leases are taken
    moved = math.abs(time[1] * 1000000 + time[2] - ARGV[3]) > 2000000
end
if moved then return {0, era[2], time[1], time[2], now[1], now[2], now[3], now[4]} end
if ARGV[4] == '' then return {1, era[2], time[1], time[2]} end
if ARGV[11] == 'deleted' then redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], KEYS[6]) end
if ARGV[11] == 'built' then
    if redis.call('EXISTS', KEYS[11]) == 0 then return {4} end
    for place, own in pairs({[11] = KEYS[3], [12] = KEYS[5]}) do
        if redis.call('EXISTS', KEYS[place]) == 1 then
            redis.call('RENAME', KEYS[place], own)
            redis.call('PERSIST', own)
        end
    end
end
redis.call('HSET', KEYS[2], 'v', ARGV[4], 'h', ARGV[5])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[2], 'r', ARGV[6]) end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[2], 'c', ARGV[7]) end
local function index(key, score)
    if score == '-' then redis.call('ZREM', key, ARGV[10])
    elseif score ~= '' then redis.call('ZADD', key, score, ARGV[10]) end
end
index(KEYS[7], ARGV[8])
index(KEYS[8], ARGV[9])
index(KEYS[10], ARGV[9])
if ARGV[9] == '-' then redis.call('ZADD', KEYS[9], 0, ARGV[10]) end
local place = 14 + tonumber(ARGV[13])
for _ = 1, tonumber(ARGV[12]) do
    redis.call('HSET', KEYS[6], ARGV[place], ARGV[place + 1])
    place = place + 2
end
while ARGV[place] do -- entries: the number of the stream's key, the offset of its last event, the events
    redis.call('XADD', KEYS[tonumber(ARGV[place])], ARGV[place + 1] .. '-0', 'e', ARGV[place + 2])
    place = place + 3
end
return {1, redis.call('HINCRBY', KEYS[1], 'count', 1), time[1], time[2]}
"""
"""Store what was decided at a version. Gives 1 (done), 0 and the state (decide again), 2 and a place (of a key that was
used), 3 (another era), or 4 (what was built is gone)."""

READ = """#!lua flags=no-writes
-- KEYS: era whole deltas packs; ARGV: offset, events, bytes, whether with deltas
local done = true
local function take(key, most)
    local found, count, from, step, room = {}, 0, ARGV[1] .. '-0', 8, tonumber(ARGV[3])
    while count < most do
        local asked = math.min(step, most - count)
        local rows = redis.call('XRANGE', key, from, '+', 'COUNT', asked)
        for _, row in ipairs(rows) do
            count = count + 1
            found[count] = row[2][2]
            room = room - #row[2][2]
            from = '(' .. row[1]
            if room <= 0 then done = false return found end
        end
        if #rows < asked then return found end
        step = math.min(step * 4, 128)
    end
    done = false
    return found
end
local most = tonumber(ARGV[2])
local whole, deltas, packs = take(KEYS[2], most), {}, {}
local from = ARGV[1] + 0
while ARGV[4] == '1' do
    local pack = redis.call('ZRANGE', KEYS[4], from, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    if not pack[1] then
        deltas = take(KEYS[3], most)
        break
    end
    packs[#packs + 1] = pack[1]
    from = pack[2] + 1
    if from - ARGV[1] >= most or #packs == 64 then
        done = false
        break
    end
end
return {redis.call('HMGET', KEYS[1], 'n', 'count'), done and 1 or 0, whole, deltas, packs}
"""
"""The entries from an offset on, and whether they are all that there is; of packs, 64 at most (4 MiB taken apart)."""

PACK = """#!lua flags=allow-oom
-- KEYS: deltas packs; ARGV: id of the first of the deltas, offset of the last to be packed, pack
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first or first[1] ~= ARGV[1] then return 0 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[3])
redis.call('XTRIM', KEYS[1], 'MINID', (ARGV[2] + 1) .. '-0')
if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[1]) end
return 1
"""
"""Put a pack in the place of the first deltas, if nobody has done so. That gives memory back, so it is done without."""

REPACK = """#!lua flags=allow-oom
-- KEYS: packs; ARGV: offset of its last, a pack, what is to take its place
if redis.call('ZREM', KEYS[1], ARGV[2]) == 0 then return 0 end
return redis.call('ZADD', KEYS[1], ARGV[1], ARGV[3])
"""
"""Put a pack in the place of another, if that is still there."""

BEGIN = """#!lua flags=allow-oom
local number = redis.call('HGET', KEYS[1], 'n') or '0'
if number ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'n', ARGV[2], ARGV[2], ARGV[3])
return 1
"""
"""Begin an era, if no other has begun; also when the memory is full, as else nothing could be deleted any more."""

ENTER = """#!lua flags=allow-oom
if (redis.call('HGET', KEYS[1], 'n') or '') ~= ARGV[1] then return 0 end
local count = redis.call('HGET', KEYS[1], 'count') or '0'
redis.call('HSET', KEYS[1], 'n', ARGV[2], 'count', count, 's' .. ARGV[2], count)
return 1
"""
"""Let a bucket go on in another era, if nobody has done so; and keep how many writes there were until then."""

MAY = """#!lua flags=no-writes
-- KEYS: one, and another; ARGV: a channel, how to speak there, and to listen
local missing, key = {}, KEYS[1]
for _, command in ipairs({
    {'DEL', key}, {'EXISTS', key}, {'EXPIRE', key, 1}, {'PERSIST', key}, {'RENAME', key, KEYS[2]},
    {'HDEL', key, 1}, {'HGET', key, 1}, {'HGETALL', key}, {'HINCRBY', key, 1, 1}, {'HMGET', key, 1},
    {'HSET', key, 1, 1}, {'HSETNX', key, 1, 1}, {'TIME'}, {ARGV[2], ARGV[1], 1}, {ARGV[3], ARGV[1]},
    {'XADD', key, '1-0', 1, 1}, {'XLEN', key}, {'XRANGE', key, 1, 1}, {'XTRIM', key, 'MINID', 1},
    {'ZADD', key, 1, 1}, {'ZRANGE', key, 1, 1}, {'ZREM', key, 1},
}) do
    local known, may = pcall(redis.acl_check_cmd, unpack(command))
    if not (known and may) then missing[#missing + 1] = command[1] end
end
return missing
"""
"""What the server does not let this user do, or does not know by its name: a script that is refused a command has done
all that stands before it."""
