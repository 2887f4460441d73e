"""Alibaba Cloud to the fake: ECS and VPC in RPC style, metadata, credentials."""
