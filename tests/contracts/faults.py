"""What a test of the contract suite needs to know of a faulty part."""

from dataclasses import dataclass

from dro_temp import testing


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Args:
        name: what is wrong.
        case: the case of a faulty class, or one that claims what is not so of a right class.
        contract: name of the contract that has to fail.
        message: regular expression for what the failure has to say.
    """

    name: str
    case: testing.Case
    contract: str
    message: str

    def check(self) -> None:
        """Run that contract."""
        contracts = {contract.__name__: contract for contract in testing.CONTRACTS[type(self.case)]}
        contracts[self.contract](self.case)
