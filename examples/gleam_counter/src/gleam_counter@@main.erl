%% What the Gleam compiler puts beside a program as its entry.
-module('gleam_counter@@main').
-export([run/1]).

run(Module) ->
    try
        {ok, _} = application:ensure_all_started(gleam_counter),
        Module:main(),
        halt(0)
    catch
        Class:Reason:Stacktrace ->
            io:format(standard_error, "~ts~n",
                      [erl_error:format_exception(Class, Reason, Stacktrace)]),
            halt(127, [{flush, true}])
    end.
