%% The application and its one supervisor.
-module(erlang_counter_app).
-behaviour(application).
-behaviour(supervisor).

-export([start/2, prep_stop/1, stop/1, init/1]).

start(_Type, _Args) ->
    supervisor:start_link({local, erlang_counter_sup}, ?MODULE, []).

prep_stop(State) ->
    erlang_counter_shutdown:prep_stop(),
    State.

stop(_State) ->
    erlang_counter_shutdown:stop().

init([]) ->
    {ok, Port} = application:get_env(erlang_counter, port),
    Http = #{port => Port, counter => erlang_counter_server},
    {ok, {#{strategy => rest_for_one},
          [#{id => server, start => {erlang_counter_server, start_link, []}},
           #{id => http, start => {counter_http, start_link, [Http]}}]}}.
