"""Who may do what: bearer tokens, service account tokens, RBAC (rbac.authorization.k8s.io/v1), the audit log."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from . import errors
from .call import Call, User
from .errors import ApiError, Json
from .storage import Storage, Stored

RBAC = "rbac.authorization.k8s.io"
ADMIN = User("kubernetes-admin", ("system:masters", "system:authenticated"))
ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))
# what the roles system:discovery, system:basic-user and system:public-info-viewer give to everybody who is known
_OPEN_PATHS = ("/api", "/apis", "/healthz", "/livez", "/readyz", "/openapi", "/version")
_PUBLIC_PATHS = ("/healthz", "/livez", "/readyz", "/version")
_SELF = ("create", "authorization.k8s.io", "selfsubjectaccessreviews")
PARTS = 3  # system:serviceaccount:NAMESPACE:NAME, the colons


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a role."""

    api_groups: tuple[str, ...]
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    names: tuple[str, ...]

    def allows(self, verb: str, group: str, resource: str, name: str) -> bool:
        """`resource` bears its subresource: "services/status"."""
        sub = resource.partition("/")[2]
        wanted = {resource, "*"} | ({f"*/{sub}"} if sub else set())
        return (
            bool({verb, "*"} & set(self.verbs))
            and bool({group, "*"} & set(self.api_groups))
            and bool(wanted & set(self.resources))
            and (not self.names or name in self.names)
        )


@dataclass(frozen=True, slots=True)
class Audit:
    """One request to a resource and the HTTP status that it got."""

    user: str
    verb: str
    group: str
    resource: str  # "services/status"
    namespace: str
    name: str
    code: int


@dataclass(frozen=True, slots=True)
class Token:
    user: User
    uid: str  # of the service account: a token ends with it
    expires: datetime | None


class Access:
    """Tokens and rules. `tokens` may be changed by tests."""

    def __init__(self, storage: Storage, admin_token: str) -> None:
        self._storage = storage
        self.tokens: dict[str, Token] = {admin_token: Token(ADMIN, "", None)}
        self.audit: list[Audit] = []

    # --- who

    def user_of(self, header: str, now: datetime) -> User:
        """Raises ApiError 401 for a token that is unknown or has ended; no token is system:anonymous."""
        if not header:
            return ANONYMOUS
        kind, _, text = header.partition(" ")
        token = self.tokens.get(text.strip()) if kind.lower() == "bearer" else None
        if token is None or not self._lives(token, now):
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return token.user

    def _lives(self, token: Token, now: datetime) -> bool:
        if token.expires is not None and token.expires <= now:
            return False
        if not token.uid:
            return True
        _, _, namespace, name = token.user.name.split(":", PARTS)
        row = self._storage.get("/serviceaccounts", f"{namespace}/{name}")
        return row is not None and row.object["metadata"]["uid"] == token.uid

    def issue(self, account: Stored, expires: datetime) -> str:
        """A token for a service account (TokenRequest)."""
        meta = account.object["metadata"]
        text = "double." + secrets.token_urlsafe(32)
        self.tokens[text] = Token(account_user(meta["namespace"], meta["name"]), meta["uid"], expires)
        return text

    # --- what

    def check(self, call: Call) -> None:
        """Raises ApiError 403 unless it is an administrator's or a rule allows it."""
        if "system:masters" in call.user.groups:
            return
        resource = _with_subresource(call)
        if (call.verb, call.resource.group, resource) == _SELF and call.user != ANONYMOUS:
            return
        name = call.name or _selected_name(call)
        rules = self.rules_of(call.user, call.namespace)
        if any(rule.allows(call.verb, call.resource.group, resource, name) for rule in rules):
            return
        raise errors.forbidden(call.resource.group, call.resource.plural, call.name, refusal(call))

    def check_path(self, user: User, path: str) -> None:
        """Paths that are no resources. Raises ApiError 403."""
        allowed = _PUBLIC_PATHS if user == ANONYMOUS else _OPEN_PATHS
        if "system:masters" in user.groups or any(path == item or path.startswith(item + "/") for item in allowed):
            return
        message = f'forbidden: User "{user.name}" cannot get path "{path}"'
        raise ApiError(403, "Forbidden", message)

    def rules_of(self, user: User, namespace: str = "") -> Iterator[Rule]:
        """Rules that hold for `user` cluster-wide, and in `namespace`."""
        for row in self._storage.all(f"{RBAC}/clusterrolebindings"):
            if any(_is_subject(user, subject, "") for subject in row.object.get("subjects") or ()):
                yield from self._role(row.object["roleRef"], "")
        if not namespace:
            return
        for row in self._storage.all(f"{RBAC}/rolebindings"):
            meta = row.object["metadata"]
            subjects = row.object.get("subjects") or ()
            if meta["namespace"] == namespace and any(_is_subject(user, one, namespace) for one in subjects):
                yield from self._role(row.object["roleRef"], namespace)

    def _role(self, reference: Json, namespace: str) -> Iterator[Rule]:
        name = reference["name"]
        if reference["kind"] == "ClusterRole":
            row = self._storage.get(f"{RBAC}/clusterroles", name)
        else:
            row = self._storage.get(f"{RBAC}/roles", f"{namespace}/{name}")
        for rule in (row.object.get("rules") or ()) if row else ():
            fields = ("apiGroups", "resources", "verbs", "resourceNames")
            yield Rule(*(tuple(rule.get(field) or ()) for field in fields))

    def note(self, call: Call, code: int) -> None:
        name = call.name or _selected_name(call)
        resource = _with_subresource(call)
        entry = Audit(call.user.name, call.verb, call.resource.group, resource, call.namespace, name, code)
        self.audit.append(entry)

    # --- what is asked about oneself

    def review(self, user: User, body: Json) -> Json:
        """SelfSubjectAccessReview."""
        wanted = (body.get("spec") or {}).get("resourceAttributes") or {}
        resource = "/".join(filter(None, (wanted.get("resource", ""), wanted.get("subresource", ""))))
        allowed = "system:masters" in user.groups or any(
            rule.allows(wanted.get("verb", ""), wanted.get("group", ""), resource, wanted.get("name", ""))
            for rule in self.rules_of(user, wanted.get("namespace", ""))
        )
        return {**body, "metadata": {}, "status": {"allowed": allowed}}


def account_user(namespace: str, name: str) -> User:
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups)


def lifetime(body: Json, now: datetime) -> datetime:
    seconds = int((body.get("spec") or {}).get("expirationSeconds") or 3600)
    return now + timedelta(seconds=seconds)


def refusal(call: Call) -> str:
    where = f'in the namespace "{call.namespace}"' if call.namespace else "at the cluster scope"
    resource = _with_subresource(call)
    group = call.resource.group
    return f'User "{call.user.name}" cannot {call.verb} resource "{resource}" in API group "{group}" {where}'


def _with_subresource(call: Call) -> str:
    return f"{call.resource.plural}/{call.subresource}" if call.subresource else call.resource.plural


def _selected_name(call: Call) -> str:
    """A list or watch of one object by field selector counts as a request for that name."""
    for term in call.query.get("fieldSelector", "").split(","):
        path, _, value = term.partition("=")
        if path == "metadata.name" and call.verb in ("list", "watch", "deletecollection"):
            return value.removeprefix("=")
    return ""


def _is_subject(user: User, subject: Json, namespace: str) -> bool:
    kind, name = subject.get("kind"), subject.get("name", "")
    if kind == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject.get('namespace') or namespace}:{name}"
    return name in user.groups if kind == "Group" else name == user.name
