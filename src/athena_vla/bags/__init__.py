"""ROS 2 messages in MCAP files, written and read back with their checksums, without a ROS installation."""
