"""Streams: captioned images that are read shard by shard while a training goes on."""
