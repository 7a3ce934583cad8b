from athena_vla.view.view_config import ViewConfig as ViewConfig
from athena_vla.view.view_config import ViewResult as ViewResult
from athena_vla.view.viewing import view as view

__all__ = ["ViewConfig", "ViewResult", "view"]
