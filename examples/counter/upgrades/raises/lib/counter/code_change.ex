defmodule Counter.CodeChange do
  @moduledoc "From 0.1.1 to 0.1.2, but there is no way: the upgrade fails past its point of no return."

  def up(_state), do: raise("this code_change raises, on purpose")

  def down(%{count: count}), do: {:ok, %{counter: count}}
end
