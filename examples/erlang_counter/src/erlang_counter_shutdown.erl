%% What the callbacks of a graceful stop do. With COUNTER_SHUTDOWN_DIR each
%% leaves a file of its name there; COUNTER_SHUTDOWN_LINES lines are logged, and
%% as many printed, by the last one; COUNTER_SHUTDOWN_MS is how long terminate
%% takes.
-module(erlang_counter_shutdown).
-export([prep_stop/0, terminate/1, stop/0]).
-include_lib("kernel/include/logger.hrl").

prep_stop() ->
    note("prep_stop", "").

terminate(Counter) ->
    timer:sleep(number("COUNTER_SHUTDOWN_MS")),
    note("terminate", integer_to_list(Counter)),
    io:format("counter stopped gracefully at ~b~n", [Counter]).

stop() ->
    Lines = lists:seq(1, number("COUNTER_SHUTDOWN_LINES")),
    [?LOG_NOTICE("shutdown logged ~b", [Line]) || Line <- Lines],
    [io:format("shutdown printed ~b~n", [Line]) || Line <- Lines],
    note("stop", integer_to_list(length(Lines))).

note(Callback, Text) ->
    case os:getenv("COUNTER_SHUTDOWN_DIR") of
        false -> ok;
        Folder -> ok = file:write_file(filename:join(Folder, Callback), Text)
    end.

number(Variable) -> list_to_integer(os:getenv(Variable, "0")).
