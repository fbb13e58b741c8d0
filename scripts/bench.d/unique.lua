-- wrk: paths that no request had before, or random ones among as many.
--   wrk -s unique.lua URL_PREFIX -- new|random FIRST COUNT [LENGTH]
-- LENGTH: what each body must have. Costs wrk time, so only where that is judged.
local mode, first, count = "new", 0, 1
local next_one = 0

function init(args)
    mode, first, count = args[1], tonumber(args[2]), tonumber(args[3])
    next_one = first
    math.randomseed(os.time())
    local length = tonumber(args[4])
    if length then
        -- wrk looks for this function once, after init.
        function response(status, _, body)
            if status ~= 200 or #body ~= length then
                print("wrong answer: status " .. status .. " with " .. #body .. " bytes")
            end
        end
    end
end

function request()
    local number
    if mode == "new" then
        number = next_one
        next_one = next_one + 1
    else
        number = first + math.random(0, count - 1)
    end
    return wrk.format("GET", wrk.path .. number .. ".deb")
end
