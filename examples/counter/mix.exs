defmodule Counter.MixProject do
  use Mix.Project

  def project do
    [
      app: :counter,
      # The build script makes several versions out of one source tree.
      version: System.get_env("COUNTER_VERSION", "0.1.0"),
      elixir: "~> 1.14",
      start_permanent: true,
      deps: [{:phrase, path: "phrase"}],
      releases: [
        counter: [
          include_executables_for: [:unix],
          quiet: true,
          applications: [sasl: String.to_atom(System.get_env("COUNTER_SASL", "permanent"))],
          config_providers: config_providers(System.get_env("COUNTER_PROVIDER", "")),
          steps: [:assemble, &keep_rel_file/1, &add_appups/1]
        ]
      ]
    ]
  end

  def application do
    [mod: {Counter.Application, []}, extra_applications: [:logger]]
  end

  # "Counter.Provider fun" -> {Counter.Provider, :fun}
  defp config_providers(words) do
    case String.split(words) do
      [] -> []
      [module, does] -> [{Module.concat([module]), String.to_atom(does)}]
    end
  end

  # A hot upgrade makes its relup from the .rel files of both versions, which
  # must stand side by side: releases/counter-0.1.1.rel, counter-0.1.2.rel.
  defp keep_rel_file(release) do
    File.cp!(
      Path.join(release.version_path, "counter.rel"),
      Path.join([release.path, "releases", "counter-#{release.version}.rel"])
    )

    release
  end

  # Puts rel/appups/{app}/{from}_to_{to}.appup beside the beams of the version
  # that it leads to, with a jellyfish.json that says so. The jellyfish library
  # (https://hex.pm/packages/jellyfish) leaves the same two files there.
  defp add_appups(release) do
    for appup <- Path.wildcard("rel/appups/*/*_to_*.appup") do
      app = appup |> Path.dirname() |> Path.basename()
      [from, to] = appup |> Path.basename(".appup") |> String.split("_to_")
      ebin = Path.join([release.path, "lib", "#{app}-#{to}", "ebin"])

      if File.dir?(ebin) do
        File.cp!(appup, Path.join(ebin, "#{app}.appup"))
        File.write!(Path.join(ebin, "jellyfish.json"), jellyfish(app, from, to))
      end
    end

    release
  end

  defp jellyfish(app, from, to) do
    """
    {
      "name": "#{app}",
      "type": "#{if app == "counter", do: "project", else: "dependency"}",
      "from": "#{from}",
      "to": "#{to}"
    }
    """
  end
end
