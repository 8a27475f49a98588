r"""Mathematics problems made from templates, in the words and the LaTeX of school competitions.

Word problems are easily had; problems with formulas in them are not, and a drafter that has seen none is poor at both, the formulas
and the worked steps that follow them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

__all__ = ["problems"]

# <2-9> is a number from 2 to 9, <red|blue> one of the words; each is drawn anew where it stands, inner ones first.
_ALGEBRA = r"""
<Solve|Solve for $x$:|Find $x$ if> $<2-9>x + <1-30> = <31-99>$.
<Find|Determine> all <real |>solutions of $x^2 - <5-20>x + <2-36> = 0$.
Find the <sum|product> of the roots of $<2-9>x^2 - <3-30>x + <1-40> = 0$.
<Factor|Factor completely:|Write as a product:> $<1-4>x^2 - <6-24>x - <5-60>$.
Expand $(<2-7>x + <1-9>)(<2-7>x - <1-9>)$<.| and simplify.>
Simplify $\frac{<2-9>x + <1-9>}{<2-6>} - \frac{x - <1-9>}{<2-6>}$ and write the result as a single fraction.
If $<2-9>x + <2-9>y = <20-60>$ and $x - y = <1-8>$, <what is $xy$?|what is the value of $x + y$?|find the ordered pair $(x, y)$.>
Solve the system \[\begin{aligned} <2-9>x + y &= <10-40>, \\ x - <2-5>y &= <1-12>. \end{aligned}\]
Evaluate $|<2-9> - <10-30>| + <2-5>^<2-3>$.
Simplify $\sqrt{<8-98>} + \sqrt{<12-128>}$<.| and give the answer in simplest radical form.>
Rationalize the denominator of $\frac{<1-9>}{\sqrt{<2-7>} + <1-4>}$.
For which values of $k$ does $x^2 + kx + <4-49> = 0$ have exactly one real solution?
Let $f(x) = <2-9>x^2 - <1-12>x + <1-20>$. <What is $f(<2-7>)$?|Find $f(-<1-5>)$.|Compute $f(f(1))$.>
If $f(x) = <2-8>x - <1-9>$ and $g(x) = x^2 + <1-9>$, find $<f(g|g(f>(<1-6>))$.
Find the inverse of the function $f(x) = \frac{x - <1-9>}{<2-9>}$.
Compute $\log_<2-5> <8-125>$<.| to the nearest tenth.>
Solve $<2-5>^{x + <1-4>} = <16-256>$<.| for $x$.>
Find the sum of the first $<5-40>$ terms of the arithmetic sequence with first term $<1-15>$ and common difference $<2-9>$.
What is the $<8-40>$th term of the sequence $<1-9>, <10-15>, <16-24>, \dots$?
A geometric sequence begins with $<2-12>$ and has the ratio $\frac{1}{<2-5>}$. Find <its fourth term|the sum of all its terms>.
Find the minimum value of $x^2 - <4-20>x + <1-60>$.
Find the remainder when $x^3 - <2-9>x + <1-9>$ is divided by $x - <1-5>$.
Solve the inequality $<2-9>x - <1-20> \le <20-80>$ and write the solution in interval notation.
If $a \star b = <2-5>a + b^2$, what is $<2-7> \star <2-7>$?
What is the value of $\frac{<2-9>^<4-7>}{<2-9>^<2-3>}$?
Suppose that $y$ varies inversely with $x$ and that $y = <4-20>$ when $x = <2-9>$. Find $y$ when $x = <10-30>$.
"""
_NUMBERS = r"""
What is the greatest common divisor of $<24-96>$ and $<100-360>$?
Find the least common multiple of $<6-20>$, $<8-24>$ and $<5-18>$.
How many positive <divisors|even divisors> does $<24-720>$ have?
What is the remainder when $<2-9>^{<10-60>}$ is divided by $<5-13>$?
Find the units digit of $<2-9>^{<15-99>}$.
What is the sum of the prime factors of $<60-990>$?
How many integers from $1$ to $<50-500>$ are divisible by $<2-5>$ but not by $<6-11>$?
Write $<20-300>$ in base $<2-8>$.
Find the smallest positive integer $n$ such that $<3-9>n$ leaves the remainder $1$ when it is divided by $<10-23>$.
What is the sum of all integers $n$ with $<1-9> < n < <12-40>$?
Write $0.\overline{<12-98>}$ as a fraction in lowest terms.
How many zeros are at the end of $<10-60>!$?
Convert $\frac{<1-19>}{<20-40>}$ to a decimal<.| and round to the nearest hundredth.>
Find the sum of the digits of $10^{<5-30>} - <1-9>$.
"""
_COUNTING = r"""
In how many ways can $<4-9>$ people stand in a row if two of them <must|must not> stand next to each other?
How many <three|four|five>-digit numbers can be formed with the digits $1$ to $<5-9>$ if no digit is used twice?
A bag holds $<3-9>$ red and $<3-9>$ blue marbles. Two are drawn at once. What is the probability that <both are red|they differ>?
Two fair dice are rolled. What is the probability that the sum is <greater than|less than|equal to> $<4-10>$?
Compute $\binom{<6-14>}{<2-4>}$.
A committee of $<2-4>$ is chosen from $<6-12>$ students. In how many ways can this be done?
How many distinct arrangements do the letters of the word <LETTER|BALLOON|GEESE|PEPPER|TOMATO|SUMMER> have?
A fair coin is flipped $<3-8>$ times. What is the probability of exactly $<1-3>$ heads?
How many paths lead from $(0,0)$ to $(<2-6>,<2-6>)$ if each step goes one unit to the right or up?
What is the expected value of the number shown by a fair <six|eight|ten|twelve>-sided die?
The mean of $<4-8>$ numbers is $<10-30>$. When one more number is added the mean becomes $<12-32>$. What is the new number?
Find the coefficient of $x^<2-4>$ in the expansion of $(x + <1-4>)^<5-8>$.
"""
_GEOMETRY = r"""
The legs of a right triangle are $<3-12>$ and $<4-16>$. <How long is the hypotenuse?|What is its area?|What is its perimeter?>
A circle has the radius $<2-15>$. What is its <area|circumference>, in terms of $\pi$?
A <cone|cylinder> has the radius $<2-9>$ cm and the height $<3-15>$ cm. What is its volume in cubic centimeters, in terms of $\pi$?
The area of a square is $<16-400>$ square inches. What is <its perimeter|the length of its diagonal>?
In triangle $ABC$, $\angle A = <20-70>^\circ$ and $\angle B = <30-80>^\circ$. Find $\angle C$<.| in degrees.>
What is the distance between the points $(<1-9>, -<1-9>)$ and $(-<1-9>, <1-9>)$?
Find the equation of the line through $(<1-5>, <1-9>)$ and $(<6-9>, <1-9>)$.
Each interior angle of a regular polygon measures $<108-170>$ degrees. How many sides does it have?
Find the midpoint of the segment from $(<1-9>, <1-9>)$ to $(<10-20>, <10-20>)$.
What are the center and the radius of the circle $x^2 - <2-10>x + y^2 + <2-10>y = <1-20>$?
The sides of a triangle are $<5-9>$, $<7-12>$ and $<8-13>$. Find its area.
A cube has a surface area of $<24-600>$ square units. What is its volume?
Point $M$ is the midpoint of side $BC$ of triangle $ABC$ with $AB = <5-13>$, $AC = <6-15>$ and $BC = <8-14>$. Find $AM$.
"""
_PRECALCULUS = r"""
Compute <$\sin|$\cos|$\tan> <30|45|60|120|135|150|210|225|240|300|315|330>^\circ$.
If $\sin \theta = \frac{<1-3>}{<4-7>}$ and $\theta$ is acute, find $\cos \theta$.
Find all solutions of $2 \sin x = 1$ with $0 \le x < 2\pi$.
Compute $\begin{pmatrix} <1-9> & <1-9> \\ <1-9> & <1-9> \end{pmatrix} \begin{pmatrix} <1-9> \\ <1-9> \end{pmatrix}$.
Find the determinant of $\begin{pmatrix} <1-9> & -<1-9> \\ <1-9> & <1-9> \end{pmatrix}$.
Find $\mathbf{u} <\cdot|\times|-> \mathbf{v}$ if $\mathbf{u} = (<1-9>, <1-9>, -<1-9>)$ and $\mathbf{v} = (<1-9>, -<1-9>, <1-9>)$.
Find the length of the vector $\begin{pmatrix} <1-9> \\ -<1-9> \\ <1-9> \end{pmatrix}$.
Compute $(<1-9> + <1-9>i)(<1-9> - <1-9>i)$.
Write $\frac{<1-9> + i}{<1-9> - i}$ in the form $a + bi$.
Convert the point $(<1-9>, <1-9>)$ to polar coordinates.
Evaluate $\sum_{k=1}^{<4-20>} (<2-5>k - <1-4>)$.
Find the polynomial of least degree with real coefficients that has the roots $<1-6>$ and $<1-6> + i$.
Find the derivative of $x^<2-6> - <2-9>x^2 + <1-9>$<.| at $x = <1-4>$.>
Find the constant $c$ such that \[\frac{x - <1-5>}{x^2 - <6-12>x + <8-20>} = \frac{c}{x - 2}\] has a solution.
How many real solutions does $x^3 - <2-9>x + <1-5> = 0$ have?
"""
_FIELD = re.compile(r"<([^<>]*)>")
_RANGE = re.compile(r"(\d+)-(\d+)")


def problems(seed: int) -> Iterator[str]:
    """Problems without end, their kind, form and numbers drawn from `seed`. Nothing ensures that one has an answer."""
    draw = random.Random(f"problems {seed}")
    kinds = [kind.strip().split("\n") for kind in (_ALGEBRA, _NUMBERS, _COUNTING, _GEOMETRY, _PRECALCULUS)]
    while True:
        problem = draw.choice(draw.choice(kinds))
        while _FIELD.search(problem):
            problem = _FIELD.sub(lambda field: _drawn(field[1], draw), problem)
        yield problem


def _drawn(field: str, draw: random.Random) -> str:
    ends = _RANGE.fullmatch(field)
    return str(draw.randint(int(ends[1]), int(ends[2]))) if ends else draw.choice(field.split("|"))
