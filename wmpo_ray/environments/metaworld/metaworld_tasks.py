"""The tasks of Meta-World 3.1: what each asks for, and what can go wrong in it. Nothing here needs the simulator."""

from __future__ import annotations

from typing import Literal, NamedTuple

# What the hand does with the object of the task, which says what failures it can have.
Manner = Literal["reaches", "moves", "carries"]
FAILURES: dict[Manner, tuple[str, ...]] = {
    "reaches": ("never_near",),
    "moves": ("never_moved",),
    "carries": ("never_moved", "dropped"),
}


class Task(NamedTuple):
    instruction: str
    manner: Manner = "moves"


TASKS: dict[str, Task] = {
    "assembly-v3": Task("put the nut onto the peg", "carries"),
    "basketball-v3": Task("put the ball into the basket", "carries"),
    "bin-picking-v3": Task("move the cube into the other bin", "carries"),
    "box-close-v3": Task("put the lid onto the box", "carries"),
    "button-press-topdown-v3": Task("press the button from above"),
    "button-press-topdown-wall-v3": Task("press the button from above, over the wall"),
    "button-press-v3": Task("press the button"),
    "button-press-wall-v3": Task("press the button behind the wall"),
    "coffee-button-v3": Task("press the button of the coffee machine"),
    "coffee-pull-v3": Task("pull the mug away from the coffee machine"),
    "coffee-push-v3": Task("push the mug under the coffee machine"),
    "dial-turn-v3": Task("turn the dial"),
    "disassemble-v3": Task("lift the nut off the peg", "carries"),
    "door-close-v3": Task("close the door"),
    "door-lock-v3": Task("lock the door"),
    "door-open-v3": Task("open the door"),
    "door-unlock-v3": Task("unlock the door"),
    "drawer-close-v3": Task("close the drawer"),
    "drawer-open-v3": Task("open the drawer"),
    "faucet-close-v3": Task("turn the faucet off"),
    "faucet-open-v3": Task("turn the faucet on"),
    "hammer-v3": Task("drive the nail into the wall with the hammer", "carries"),
    "hand-insert-v3": Task("put the block into the hole with the hand"),
    "handle-press-side-v3": Task("press the handle down from the side"),
    "handle-press-v3": Task("press the handle down"),
    "handle-pull-side-v3": Task("pull the handle up from the side"),
    "handle-pull-v3": Task("pull the handle up"),
    "lever-pull-v3": Task("pull the lever up"),
    "peg-insert-side-v3": Task("put the peg into the hole in the side of the box", "carries"),
    "peg-unplug-side-v3": Task("pull the plug out of the box"),
    "pick-out-of-hole-v3": Task("lift the block out of the hole", "carries"),
    "pick-place-v3": Task("carry the block to the goal", "carries"),
    "pick-place-wall-v3": Task("carry the block over the wall to the goal", "carries"),
    "plate-slide-back-side-v3": Task("slide the plate sideways out of the cabinet"),
    "plate-slide-back-v3": Task("slide the plate back out of the cabinet"),
    "plate-slide-side-v3": Task("slide the plate sideways into the cabinet"),
    "plate-slide-v3": Task("slide the plate into the cabinet"),
    "push-back-v3": Task("pull the block back to the goal"),
    "push-v3": Task("push the block to the goal"),
    "push-wall-v3": Task("push the block around the wall to the goal"),
    "reach-v3": Task("move the hand to the goal", "reaches"),
    "reach-wall-v3": Task("move the hand over the wall to the goal", "reaches"),
    "shelf-place-v3": Task("put the block onto the shelf", "carries"),
    "soccer-v3": Task("push the ball into the goal"),
    "stick-pull-v3": Task("pull the thermos with the stick", "carries"),
    "stick-push-v3": Task("push the thermos with the stick", "carries"),
    "sweep-into-v3": Task("sweep the block into the hole"),
    "sweep-v3": Task("sweep the block off the table"),
    "window-close-v3": Task("close the window"),
    "window-open-v3": Task("open the window"),
}
