defmodule Counter.NewProvider do
  @moduledoc "A config provider that the version before does not have."
  @behaviour Config.Provider

  @impl true
  def init(does), do: does

  @impl true
  def load(config, greeting), do: Config.Reader.merge(config, counter: [greeting: "#{greeting}"])
end
