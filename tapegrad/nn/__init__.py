"""Parts to train: modules, layers, recurrent cells, losses."""

from .cells import GRUCell as GRUCell
from .cells import LSTMCell as LSTMCell
from .cells import RNNCell as RNNCell
from .document import ConcatPooling as ConcatPooling
from .document import DocumentEncoder as DocumentEncoder
from .document import PoolingLinear as PoolingLinear
from .layers import Add as Add
from .layers import Embedding as Embedding
from .layers import Linear as Linear
from .layers import Mul as Mul
from .layers import Sigmoid as Sigmoid
from .layers import Tanh as Tanh
from .losses import CrossEntropy as CrossEntropy
from .losses import MeanSquaredError as MeanSquaredError
from .module import Module as Module
