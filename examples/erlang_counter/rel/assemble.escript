%% assemble.escript ROOT VERSION EBIN...: makes the release below ROOT from the
%% applications in the EBIN folders and the host's OTP.
main([Root, Version | Ebins]) ->
    code:add_paths(Ebins),
    Releases = filename:join(Root, "releases"),
    Folder = filename:join(Releases, Version),
    ok = filelib:ensure_path(Folder),
    Base = [kernel, stdlib, sasl],
    script(Folder, "start_clean", Version, [kernel, stdlib], Ebins),
    script(Folder, "erlang_counter", Version, Base ++ [counter_http, erlang_counter], Ebins),

    %% make_tar knows what belongs into a release; the caller packs it anew.
    Name = filename:join(Folder, "erlang_counter"),
    {ok, _, _} = systools:make_tar(Name, [silent, {path, Ebins}, {outdir, Root}, {erts, code:root_dir()}]),
    Tar = filename:join(Root, "erlang_counter.tar.gz"),
    ok = erl_tar:extract(Tar, [compressed, {cwd, Root}]),
    ok = file:delete(Tar),
    %% Without a module's attributes release_handler can't tell two versions of it apart.
    {ok, _} = beam_lib:strip_release(Root, ["Attr"]),
    Data = [erlang:system_info(version), " ", Version, "\n"],
    ok = file:write_file(filename:join(Releases, "start_erl.data"), Data).

script(Folder, Name, Version, Apps, Ebins) ->
    Erts = erlang:system_info(version),
    Release = {release, {Name, Version}, {erts, Erts}, [{App, version(App)} || App <- Apps]},
    File = filename:join(Folder, Name),
    ok = file:write_file(File ++ ".rel", io_lib:format("~p.~n", [Release])),
    {ok, _, _} = systools:make_script(File, [silent, {path, Ebins}, {outdir, Folder}]).

version(App) ->
    ok = case application:load(App) of {error, {already_loaded, _}} -> ok; Other -> Other end,
    {ok, Version} = application:get_key(App, vsn),
    Version.
