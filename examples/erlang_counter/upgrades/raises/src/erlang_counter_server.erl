%% Keeps the counter, and how often it was incremented since its state has this
%% shape.
-module(erlang_counter_server).
-behaviour(gen_server).
-behaviour(counter_http).

-export([start_link/0, status/0, increment/0]).
-export([init/1, handle_call/3, handle_cast/2, code_change/3, terminate/2]).

start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

status() ->
    erlang_counter_status:describe(gen_server:call(?MODULE, value)).

increment() ->
    erlang_counter_status:describe(gen_server:call(?MODULE, increment)).

init([]) ->
    %% terminate/2 is called on a graceful stop only when exits are trapped.
    process_flag(trap_exit, true),
    {ok, #{count => 0, increments => 0}}.

handle_call(value, _From, State) ->
    {reply, answer(State), State};
handle_call(increment, _From, #{count := Count, increments := Increments}) ->
    State = #{count => Count + 1, increments => Increments + 1},
    {reply, answer(State), State}.

answer(#{count := Count, increments := Increments}) ->
    [{counter, Count}, {state, 2}, {increments, Increments}].

handle_cast(_Message, State) ->
    {noreply, State}.

%% Both ways are called in this module: going down, before the old code is loaded.
code_change({down, _Vsn}, #{count := Count}, _Extra) ->
    {ok, #{counter => Count}};
code_change(_Vsn, _State, _Extra) ->
    error("this code_change raises, on purpose").

terminate(_Reason, #{count := Count}) ->
    erlang_counter_shutdown:terminate(Count).
