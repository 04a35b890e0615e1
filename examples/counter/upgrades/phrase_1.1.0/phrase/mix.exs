defmodule Phrase.MixProject do
  use Mix.Project

  def project, do: [app: :phrase, version: "1.1.0", elixir: "~> 1.14", deps: []]

  def application, do: [extra_applications: []]
end
