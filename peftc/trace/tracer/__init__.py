"""One forward as a graph: run on proxies that know their value at two example points, under every scenario."""
