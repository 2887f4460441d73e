"""A cloud to test against: one state, and in front of it what real SDKs speak. Time is virtual."""
