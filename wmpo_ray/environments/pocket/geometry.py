"""Sizes of the pocket task, in pixels of its 16x16 frame (the origin is the upper left corner)."""

FRAME_SIZE = 16
BLOCK_HALF = 1.5
MAX_SPEED = 5.0  # per frame and axis
GRASP_REACH = 1.2  # per axis, at the moment the gripper closes
WALL_X = 10.5  # face of the wall
POCKET_END_X = 15.5
POCKET_TOLERANCE = 1.0  # play of the block in a pocket, up and down
POCKET_HALF = BLOCK_HALF + POCKET_TOLERANCE
SEATED_X = 12.5  # a block whose centre is at least this deep is placed
