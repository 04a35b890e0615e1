%% What the counter answers over HTTP.
-module(erlang_counter_status).
-export([describe/1]).

%% The configuration is read anew each time, so that the answer shows what a
%% hot upgrade made of it; the port is the configured one, not the open one.
describe([{counter, Counter} | Server]) ->
    {ok, Version} = application:get_key(erlang_counter, vsn),
    [{version, list_to_binary(Version)},
     {counter, Counter},
     {os_pid, list_to_binary(os:getpid())},
     {node, atom_to_binary(node())},
     {greeting, text(greeting)},
     {only_runtime, text(only_runtime)},
     {port, application:get_env(erlang_counter, port, undefined)} | Server].

text(Key) ->
    case application:get_env(erlang_counter, Key) of
        {ok, String} -> unicode:characters_to_binary(String);
        undefined -> undefined
    end.
