"""ROS 2: a node, its messages, a bag of what happened, a launch file."""
