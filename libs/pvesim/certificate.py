"""The lab's own certificate authority of one: a self-signed TLS certificate made on the first start."""

import datetime as dt
import hashlib
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

_COMMON_NAME = "Proxmox VE lab"
_KEY_BITS = 2048
_VALID_DAYS = 3650
_CLOCK_SKEW_DAYS = 1


class Certificate:
    """Paths of the PEM files and the SHA-256 fingerprint as Proxmox VE prints it (`AA:BB:…`)."""

    def __init__(self, folder: Path) -> None:
        self.certificate_path = folder / "pve-ssl.pem"
        self.key_path = folder / "pve-ssl.key"

    def ensure(self, names: list[str]) -> None:
        """Create key and certificate unless they are there; `names` are DNS names and addresses to be valid for."""
        if self.certificate_path.exists() and self.key_path.exists():
            return
        key = private_key(self.key_path)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _COMMON_NAME)])
        today = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - dt.timedelta(days=_CLOCK_SKEW_DAYS))
            .not_valid_after(today + dt.timedelta(days=_VALID_DAYS))
            .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        self.certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def pem(self) -> str:
        return self.certificate_path.read_text()

    @property
    def subject(self) -> str:
        """As SPICE clients compare it: `CN=…`."""
        return f"CN={_COMMON_NAME}"

    @property
    def fingerprint(self) -> str:
        certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest().upper()
        return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def private_key(path: Path) -> rsa.RSAPrivateKey:
    """Read the RSA key at `path`, or make one there that only its owner may read."""
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError(f"{path.name} is not an RSA key")
        return key
    fresh = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    pem = fresh.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return fresh


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
