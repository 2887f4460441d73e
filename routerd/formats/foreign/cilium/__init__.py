"""Cilium's kinds (cilium.io/v2, v2alpha1): policies of egress, pools of addresses, peers. Pure."""
