"""ROS 2 bags: topics, messages in the order of their stamps, images on demand."""
