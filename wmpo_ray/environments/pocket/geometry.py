"""Tasks of the pocket environment, and its sizes in pixels of the 16x16 frame (the origin is the upper left corner)."""

FRAME_SIZE = 16
BLOCK_HALF = 1.5
MAX_SPEED = 5.0  # per frame and axis
GRASP_REACH = 1.2  # per axis, at the moment the gripper closes
WALL_X = 10.5  # face of the wall
POCKET_END_X = 15.5
POCKET_TOLERANCE = 1.0  # play of the block in a pocket, up and down
POCKET_HALF = BLOCK_HALF + POCKET_TOLERANCE
SEATED_X = 12.5  # a block whose centre is at least this deep is placed
# Push the block into its pocket; the same, by a name; the same, and let go of it there; push it onto its mark.
TASKS = ("", "pocket", "place", "push")
PLACE_DWELL = 2  # frames in a row that the block must lie in its pocket, let go, in the task "place"
MARK_TOLERANCE = 1.0  # per axis, between the centres of a mark and a block that lies within it
MARK_HALF = BLOCK_HALF + MARK_TOLERANCE
MARK_DWELL = 2  # frames in a row that the block must lie within its mark, in the task "push"
PUSH_INSTRUCTIONS = ("push the block onto the blue mark", "push the block onto the pink mark")
INSTRUCTIONS = ("put the block into the blue pocket", "put the block into the pink pocket")
