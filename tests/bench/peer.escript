#!/usr/bin/env escript
%% A BEAM client, to measure ours against: what a deployment tool that is itself a BEAM does.
%%
%%   peer.escript NODE COOKIE upgrade APP TO TARBALL   microseconds from there being a tarball to
%%       installed: copied, release_handler:unpack_release/1, make_relup, check, the runtime
%%       configuration as in tests/upgrade.escript, install, each an rpc. The client's own start and
%%       its connection are not counted.
%%   peer.escript NODE COOKIE back FROM TO             takes it back again, and forgets FROM
%%   peer.escript NODE COOKIE rpc N                    two lists of N: microseconds of an rpc on an
%%       open connection, and of connecting
%% Prints an Erlang term.
-mode(compile).

main([Name, Cookie | What]) ->
    Node = list_to_atom(Name),
    {ok, _} = net_kernel:start([list_to_atom("peer" ++ os:getpid()), shortnames]),
    true = erlang:set_cookie(Node, list_to_atom(Cookie)),
    true = net_kernel:hidden_connect_node(Node),
    io:format("~w.~n", [do(Node, What)]).

do(Node, ["upgrade", App, To, Tarball]) ->
    {Taken, ok} = timer:tc(fun() -> upgrade(Node, App, To, Tarball) end),
    Taken;
do(Node, ["back", From, To]) ->
    {ok, _, _} = install(Node, To),
    ok = rpc(Node, release_handler, set_removed, [From]);
do(Node, ["rpc", N]) ->
    Times = lists:seq(1, list_to_integer(N)),
    Calls = [element(1, timer:tc(fun() -> rpc(Node, erlang, node, []) end)) || _ <- Times],
    Connects = [connect(Node) || _ <- Times],
    {Calls, Connects}.

connect(Node) ->
    true = erlang:disconnect_node(Node),
    timer:sleep(5),  % the other side has to see it, too
    {Taken, true} = timer:tc(fun() -> net_kernel:hidden_connect_node(Node) end),
    Taken.

upgrade(Node, App, To, Tarball) ->
    Root = rpc(Node, code, root_dir, []),
    Folder = filename:join([Root, "releases", To]),
    [From] = [V || {_, V, _, permanent} <- rpc(Node, release_handler, which_releases, [])],
    ok = filelib:ensure_dir(Folder ++ "/"),
    {ok, _} = file:copy(Tarball, filename:join(Folder, App ++ ".tar.gz")),
    {ok, To} = rpc(Node, release_handler, unpack_release, [To ++ "/" ++ App]),
    Rel = fun(Version) -> Root ++ "/releases/" ++ App ++ "-" ++ Version end,
    Options = [silent, {path, [Root ++ "/lib/*/ebin"]}, {outdir, Folder}],
    {ok, Relup, _, _} = rpc(Node, systools, make_relup, [Rel(To), [Rel(From)], [Rel(From)], Options]),
    {ok, _, _} = rpc(Node, release_handler, check_install_release, [To]),
    ok = configure(Node, Folder, Relup),
    {ok, _, _} = install(Node, To),
    ok.

install(Node, Version) ->
    Options = [{update_paths, true}, {error_action, reboot}],
    rpc(Node, release_handler, install_release, [Version, Options]).

configure(Node, Folder, {Version, Up, Down}) ->
    {ok, [SysConfig]} = rpc(Node, file, consult, [Folder ++ "/sys.config"]),
    #{providers := Providers} =
        proplists:get_value(config_provider_init, proplists:get_value(elixir, SysConfig)),
    Load = fun({Module, Argument}, Config) -> rpc(Node, Module, load, [Config, Argument]) end,
    Resolved = lists:foldl(Load, SysConfig, Providers),
    ok = rpc(Node, persistent_term, put, [peer_configuration, Resolved]),
    {ok, Tokens, _} = erl_scan:string(
        "application:set_env(persistent_term:get(peer_configuration), [{persistent, true}])."),
    {ok, Forms} = erl_parse:parse_exprs(Tokens),
    Hook = fun({Other, Description, Script}) ->
        {Before, [Point | After]} = lists:splitwith(fun(I) -> I =/= point_of_no_return end, Script),
        {Other, Description, Before ++ [Point, {apply, {erl_eval, exprs, [Forms, []]}} | After]}
    end,
    Term = {Version, lists:map(Hook, Up), lists:map(Hook, Down)},
    rpc(Node, file, write_file, [Folder ++ "/relup", io_lib:format("~tp.~n", [Term])]).

rpc(Node, Module, Function, Arguments) -> rpc:call(Node, Module, Function, Arguments, 30000).
