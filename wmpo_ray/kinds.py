"""What can be exchanged, one table for each seam. A new kind of ours is one line here; a package brings an entry point.

What a kind offers is written in the base class of its room: `PolicyKind`, `WorldModelKind`, `RewardModelKind` and
`EnvironmentKind`. Each has `section`, the class of its section of the configuration.
"""

from __future__ import annotations

from wmpo_ray.core.plugins import Kinds

ENVIRONMENTS = Kinds(
    "environment.kind",
    "wmpo_ray.environments",
    {
        "pocket": "wmpo_ray.environments.pocket.pocket_kind:PocketKind",
        "gymnasium": "wmpo_ray.environments.gymnasium.gymnasium_kind:GymnasiumKind",
        "pusht": "wmpo_ray.environments.pusht.pusht_kind:PushTKind",
        "metaworld": "wmpo_ray.environments.metaworld.metaworld_kind:MetaWorldKind",
        "robosuite": "wmpo_ray.environments.robosuite.robosuite_kind:RobosuiteKind",
        "lift": "wmpo_ray.environments.lift.lift_kind:LiftKind",
        "stack": "wmpo_ray.environments.stack.stack_kind:StackKind",
        "mimicgen": "wmpo_ray.environments.mimicgen.mimicgen_kind:MimicGenKind",
        "remote": "wmpo_ray.environments.remote.remote_kind:RemoteKind",
        "aloha": "wmpo_ray.environments.without_simulator:AlohaKind",
    },
    members=("section", "facts", "make", "check"),
)
POLICIES = Kinds(
    "policy.kind",
    "wmpo_ray.policies",
    {
        "tiny": "wmpo_ray.policies.tiny_kind:TinyKind",
        "openvla_oft": "wmpo_ray.policies.openvla.openvla_kind:OpenVLAKind",
        "flow": "wmpo_ray.policies.flow.flow_kind:FlowKind",
        "smolvla": "wmpo_ray.policies.flow.vla_kind:SmolVLAKind",
        "pi0": "wmpo_ray.policies.flow.vla_kind:PiKind",
    },
    members=("section", "create", "load", "pretrained", "blueprint"),
)
WORLD_MODELS = Kinds(
    "world_model.kind",
    "wmpo_ray.world_models",
    {
        "diffusion": "wmpo_ray.world_models.diffusion_kind:DiffusionKind",
        "simulator": "wmpo_ray.world_models.simulator_kind:SimulatorKind",
    },
    members=("section", "begin", "load", "blueprint"),
)
REWARD_MODELS = Kinds(
    "reward.kind",
    "wmpo_ray.reward_models",
    {
        "videomae": "wmpo_ray.reward_models.videomae_kind:VideoMAEKind",
        "frame": "wmpo_ray.reward_models.frame_kind:FrameKind",
        "vlm": "wmpo_ray.reward_models.vlm_kind:VlmKind",
        "videomae_published": "wmpo_ray.reward_models.published_kind:PublishedVideoMAEKind",
    },
    members=("section", "create", "load", "pretrained", "blueprint"),
)
TABLES = (ENVIRONMENTS, POLICIES, WORLD_MODELS, REWARD_MODELS)
