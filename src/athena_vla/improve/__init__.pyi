from athena_vla.improve.improve_config import ImproveConfig as ImproveConfig
from athena_vla.improve.improving import improve as improve
from athena_vla.improve.keeping_rule import decide as decide
from athena_vla.improve.round_result import ImproveResult as ImproveResult
from athena_vla.improve.round_result import RoundResult as RoundResult

__all__ = ["ImproveConfig", "ImproveResult", "RoundResult", "decide", "improve"]
