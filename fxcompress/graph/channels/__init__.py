"""Channels: which slices of which parameters must be removed together."""

from fxcompress.graph.channels.groups import ChannelGroup, Slice, channel_groups

__all__ = ["ChannelGroup", "Slice", "channel_groups"]
