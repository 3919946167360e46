"""The robot's side of wmpo: acts with a served policy, records what it did, and serves simulators. No torch.

numpy, grpcio, protobuf and pillow are all that it needs; everything in it is Python 3.9. The parts:

    server_connection      address, TLS, token, deadlines
    served_policy          ask a server for chunks of actions
    broker                 the next chunk before the present one is used up
    safety                 bounds, watchdog and stop, which nothing remote can change
    episode_recorder, episode_spool       episodes on the robot's disk, uploaded in the background
    operator_keys          success, failure and stop by a person's key
    drive                  all of these in one control loop
    lerobot_bridge         LeRobot's robot client, answered on the robot's own machine
    scenes                 a simulator somewhere else, as the server of it shows it
    serving                that server, and the locks that every server of ours has
"""

__version__ = "0.1.0"
PROTOCOL = 1  # of wmpo.v1
