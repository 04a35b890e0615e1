defmodule Counter.MixProject do
  use Mix.Project

  def project do
    [
      app: :counter,
      # The build script makes several versions out of one source tree.
      version: System.get_env("COUNTER_VERSION", "0.1.0"),
      elixir: "~> 1.14",
      start_permanent: true,
      deps: [],
      releases: [
        counter: [
          include_executables_for: [:unix],
          quiet: true,
          steps: [:assemble, &keep_rel_file/1]
        ]
      ]
    ]
  end

  def application do
    [mod: {Counter.Application, []}, extra_applications: [:logger]]
  end

  # A hot upgrade makes its relup from the .rel files of both versions, which
  # must stand side by side: releases/counter-0.1.0.rel, counter-0.1.1.rel.
  defp keep_rel_file(release) do
    File.cp!(
      Path.join(release.version_path, "counter.rel"),
      Path.join([release.path, "releases", "counter-#{release.version}.rel"])
    )

    release
  end
end
