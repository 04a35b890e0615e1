%% rename_sasl.escript RELEASE VERSION SUFFIX: gives the sasl of an assembled release another version,
%% wherever the release names it.
main([Release, Version, Suffix]) ->
    [Library] = filelib:wildcard(Release ++ "/lib/sasl-*"),
    "sasl-" ++ Old = filename:basename(Library),
    Rename = fun(Term) -> rename(Term, Old, Old ++ Suffix) end,
    ok = file:rename(Library, Library ++ Suffix),
    ok = rewrite(Library ++ Suffix ++ "/ebin/sasl.app", Rename),
    Folder = filename:join([Release, "releases", Version]),
    [ok = rewrite(File, Rename) || File <- filelib:wildcard(Release ++ "/releases/*.rel")],
    [ok = rewrite(File, Rename) || File <- filelib:wildcard(Folder ++ "/*.{rel,script}")],
    [boot(Script) || Script <- filelib:wildcard(Folder ++ "/*.script")].

rewrite(File, Rename) ->
    {ok, [Term]} = file:consult(File),
    file:write_file(File, io_lib:format("~tp.~n", [Rename(Term)])).

boot(Script) ->
    {ok, [Term]} = file:consult(Script),
    ok = file:write_file(filename:rootname(Script) ++ ".boot", term_to_binary(Term)).

rename({application, sasl, Keys}, Old, New) ->
    {application, sasl, lists:keyreplace(vsn, 1, rename(Keys, Old, New), {vsn, New})};
rename({sasl, Old, Mode}, Old, New) ->
    {sasl, New, Mode};
rename(Tuple, Old, New) when is_tuple(Tuple) ->
    list_to_tuple(rename(tuple_to_list(Tuple), Old, New));
rename(List, Old, New) when is_list(List) ->
    case io_lib:printable_unicode_list(List) of
        true -> lists:flatten(string:replace(List, "/sasl-" ++ Old ++ "/", "/sasl-" ++ New ++ "/"));
        false -> [rename(Element, Old, New) || Element <- List]
    end;
rename(Other, _Old, _New) ->
    Other.
