"""The pinned wasmtime as Python sees it: structures, codecs, linking, instances. Not: WASI."""
