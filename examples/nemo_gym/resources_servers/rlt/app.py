"""rlt's resources server, where NeMo Gym looks for it. RLT_URL names the running `rlt serve`."""

from rlt.integrations.nemo_gym import TeacherRewardServer

if __name__ == "__main__":
    TeacherRewardServer.run_webserver()
